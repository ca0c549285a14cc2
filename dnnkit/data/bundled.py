"""Data files that another package brings with it, read without importing that package."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from dnnkit.data.files import Known, read_verified
from dnnkit.errors import DataError

log = logging.getLogger("dnnkit")


def bundled_file(package: str, file: str, known: Known) -> bytearray | None:
    """The uncompressed bytes of the file `file` within an installed top-level package, if they are the known ones.

    None where this version of the package has no such file or another content: then its own functions have to be asked.
    That is told in the log, because importing a package may take longer than training on what it holds.
    """
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        try:
            return read_verified(Path(folder) / file, known)
        except DataError as error:
            log.info("data: %s; %s is imported instead", error.cause, package)
    return None
