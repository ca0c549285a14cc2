"""One file over HTTP: patient with a slow server, impatient with an absent one, able to go on where it stopped.

The standard library's client rather than a download library: those that verify hash the compressed bytes, which differ
between mirrors, and do not continue a file that was cut; and here a connection needs a deadline of its own.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dnnkit.disk import disk

#: From asking for a server's address to having a connection, TLS included.
CONNECT_SECONDS = 4.0
#: Without a byte from a server that was reached.
SILENCE_SECONDS = 20.0
#: Connections for one file to one server; each but the first goes on where the last one was cut.
ATTEMPTS = 5
_BLOCK = 2**16

#: Told how many bytes there are, and how many there will be, or None where the server does not say.
Tell = Callable[[int, int | None], None]


class FetchError(Exception):
    """A file could not be had from a server. `server_lost` says that asking it for others is of no use."""

    def __init__(self, reason: str, *, server_lost: bool = False) -> None:
        super().__init__(reason)
        self.server_lost = server_lost


class _CutError(Exception):
    """The connection ended before the file did."""


def fetch(address: str, part: Path, most: int, tell: Tell) -> None:
    """The file at `address` into `part`, going on from the bytes that `part` already holds where the server can.

    Whether they are the right bytes is for the caller to say. Raises FetchError, after which `part` holds what has
    arrived, or is gone where that cannot be the beginning of the file: what would be longer than `most` bytes is refused.
    Raises DiskError.
    """
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(part)
        try:
            return _receive(address, part, most, tell)
        except _CutError as cut:
            if attempt == ATTEMPTS or _size(part) <= before:
                raise FetchError(f"the connection was cut after {_size(part)} bytes ({cut})") from cut


def without_credentials(address: str) -> str:
    """The address to write down: no user, no password, no query."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _receive(address: str, part: Path, most: int, tell: Tell) -> None:
    have = _size(part)
    response = _answer(address, have)
    if response is None:
        return
    with response:
        start = _start(response) if response.status == http.client.PARTIAL_CONTENT else 0
        if start not in (0, have):
            part.unlink(missing_ok=True)
            raise FetchError(f"it was asked to go on at byte {have} and went on at byte {start}")
        length = response.length
        expected = None if length is None else start + length
        if expected is not None and expected > most:
            raise FetchError(f"it offers {expected} bytes, the file has {most} at most")
        _write(response, part, start, expected, most, tell)


def _write(response: http.client.HTTPResponse, part: Path, start: int, expected: int | None, most: int, tell: Tell) -> None:
    count = start
    with disk(part):
        # Unbuffered, so that a killed process leaves all that had arrived.
        file = part.open("ab" if start else "wb", buffering=0)
    with file:
        while block := _read(response):
            count += len(block)
            if count > most:
                part.unlink(missing_ok=True)
                raise FetchError(f"it sends more than the {most} bytes that the file has at most")
            _write_all(file, part, block)
            tell(count, expected)
    if expected is not None and count < expected:
        raise _CutError(f"expected {expected}")


def _write_all(file: BinaryIO, part: Path, block: bytes) -> None:
    view = memoryview(block)
    with disk(part):
        while view:
            view = view[file.write(view) :]


def _read(response: http.client.HTTPResponse) -> bytes:
    """What has arrived, at least a byte; nothing at the end."""
    try:
        return response.read1(_BLOCK)
    except TimeoutError as error:
        raise FetchError(f"it was silent for {SILENCE_SECONDS:g} s", server_lost=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(_words(error)) from error


def _answer(address: str, have: int) -> http.client.HTTPResponse | None:
    """The server's answer to being asked for what comes after `have` bytes, the body still to be read; None where nothing does."""
    try:
        response: http.client.HTTPResponse = _opener().open(_request(address, have), timeout=SILENCE_SECONDS)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None
        raise FetchError(f"it answered {error.code} {error.reason}".rstrip()) from error
    except urllib.error.URLError as error:
        raise FetchError(f"it cannot be reached ({_words(error.reason)})", server_lost=True) from error
    except TimeoutError as error:
        raise FetchError(f"it was silent for {SILENCE_SECONDS:g} s", server_lost=True) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(f"it did not answer ({_words(error)})", server_lost=True) from error


def _request(address: str, have: int) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)), headers={"User-Agent": "dnnkit"})
    if at:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        # Unredirected: a redirect to another server does not take the password there.
        request.add_unredirected_header("Authorization", f"Basic {token}")
    if have:
        request.add_header("Range", f"bytes={have}-")
    return request


def _start(response: http.client.HTTPResponse) -> int:
    """The first byte that a partial answer holds, -1 where it does not say."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _words(error: object) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


class _Impatient(http.client.HTTPConnection):
    """Connects within CONNECT_SECONDS, or not at all.

    A socket's own timeout is for each of a host's addresses, and looking up the name has none: without a network that
    adds up to minutes.
    """

    def connect(self) -> None:
        patience, self.timeout = self.timeout, CONNECT_SECONDS
        _within(CONNECT_SECONDS, super().connect)
        self.sock.settimeout(patience)


class _ImpatientTLS(_Impatient, http.client.HTTPSConnection):
    """The same with TLS: the next class's `connect` includes the handshake."""


def _within(seconds: float, act: Callable[[], None]) -> None:
    """`act` in a thread that is left behind when the time is over; whatever else it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="dnnkit-connect")
    thread.start()
    thread.join(seconds)
    # A socket whose time is over at the same moment may say so first.
    if thread.is_alive() or any(isinstance(error, TimeoutError) for error in failed):
        raise TimeoutError(f"no connection within {seconds:g} s")
    if failed:
        raise failed[0]


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Impatient, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_ImpatientTLS, req, context=ssl.create_default_context())


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS, through the proxies of the environment; a redirect cannot lead to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Http(),
        _Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
