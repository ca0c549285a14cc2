"""Whether other programs want this machine's cores: who watches the machine says so, who computes asks."""

from __future__ import annotations


class Crowd:
    """Whether other programs want this machine's cores; whoever watches the machine says so."""

    __slots__ = ("here",)

    def __init__(self) -> None:
        self.here = False


#: One for the process, as the number of threads is.
CROWD = Crowd()
