"""Downloading, against a server on this machine that does whatever servers do: nothing damaged is ever used."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from dnnkit.data import fetch
from dnnkit.data.download import download_folder, obtain_files
from dnnkit.data.files import Found, Known, user_cache
from dnnkit.errors import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
# Random bytes hardly compress, so that half of the compressed file is about half of the file.
CONTENTS = {IMAGES: random.Random(0).randbytes(200_000), LABELS: random.Random(1).randbytes(3000)}
FILES = {name: Known(hashlib.sha256(content).hexdigest(), len(content)) for name, content in CONTENTS.items()}
PACKED = {f"/mine/{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}


class Server(ThreadingHTTPServer):
    """Serves PACKED with Range, unless `act` takes over; remembers what it was asked: path and Range."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, act: Callable[[Answer], bool] | None = None, files: dict[str, bytes] = PACKED) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.act, self.files, self.asked, self.headers = act, files, list[tuple[str, str]](), list[dict[str, str]]()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def paths(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self.asked]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class Answer(BaseHTTPRequestHandler):
    """One answer; `n` counts those for the same path, from 1."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        self.server.headers.append(dict(self.headers))
        self.n = sum(path == self.path for path, _ in self.server.asked)
        self.body = self.server.files.get(self.path)
        self.close_connection = True
        if self.server.act is None or not self.server.act(self):
            self.whole()

    def whole(self, ranges: bool = True) -> None:
        if self.body is None:
            self.send_error(404)
            return
        self.start(ranges)
        self.wfile.write(self.rest)

    def start(self, ranges: bool = True) -> None:
        """The head of an honest answer; `rest` is what its body has to be."""
        assert self.body is not None
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
        first = int(asked[1]) if asked else 0
        self.rest = self.body[first:]
        if asked and not self.rest:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(self.body) - 1}/{len(self.body)}")
        self.send_header("Content-Length", str(len(self.rest)))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*given: object) -> Server:
        servers.append(Server(*given))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data and with a short patience."""
    monkeypatch.delenv("DNNKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.5)
    return tmp_path


@pytest.fixture
def obtain(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Found]:
    def run(*servers: Server | str, root: Path | None = None, console: Console | None = None) -> Found:
        bases = [server if isinstance(server, str) else server.base for server in servers]
        monkeypatch.setenv("DNNKIT_MIRRORS", " ".join(bases))
        return obtain_files(root, "mine", FILES, (), cure="or data=digits", console=console)

    return run


def folder(home: Path) -> Path:
    return home / "cache" / "dnnkit" / "mine"


def left(place: Path) -> set[str]:
    """What is in the folder, but for the lock."""
    return {path.name for path in place.iterdir()} - {".download.lock"}


WHOLE = {f"{name}.gz" for name in FILES}


def cut_once(fraction: float) -> Callable[[Answer], bool]:
    """The first answer for each path ends after that part of its body."""

    def act(answer: Answer) -> bool:
        if answer.n > 1:
            return False
        answer.start()
        answer.wfile.write(answer.rest[: int(fraction * len(answer.rest))])
        return True

    return act


# What works


def test_files_that_are_nowhere_are_downloaded_once_and_found_from_then_on(home, serve, obtain) -> None:
    server = serve()
    found = obtain(server)
    assert found.contents == CONTENTS
    assert found.place == folder(home)
    assert left(folder(home)) == WHOLE
    assert obtain(server).contents == CONTENTS
    assert sorted(server.paths) == sorted(WHOLE)


def test_the_files_go_to_the_root_else_to_the_variable_else_to_the_cache(home, serve, obtain, monkeypatch) -> None:
    server = serve()
    assert download_folder(None, "mine") == user_cache() / "mine" == folder(home)
    monkeypatch.setenv("DNNKIT_DATA", str(home / "named"))
    assert obtain(server).place == home / "named" / "mine"
    assert obtain(server, root=home / "root").place == home / "root" / "mine"
    assert not folder(home).exists()


def test_the_built_in_mirrors_hold_the_files_themselves_and_the_variable_replaces_them(home, serve, monkeypatch) -> None:
    server = serve(None, {path.replace("/mine/", "/some/where/"): body for path, body in PACKED.items()})
    monkeypatch.delenv("DNNKIT_MIRRORS")
    assert obtain_files(None, "mine", FILES, [f"{server.base}/some/where/"]).contents == CONTENTS
    monkeypatch.setenv("DNNKIT_MIRRORS", "")
    with pytest.raises(DataError, match="nothing was downloaded: DNNKIT_MIRRORS is set and empty"):
        obtain_files(home / "else", "mine", FILES, [f"{server.base}/some/where/"])
    assert not (home / "else").exists()


def test_files_that_are_found_are_used_without_asking_anybody(home, serve, obtain) -> None:
    server, place = serve(), home / "data" / "mine"
    place.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (place / name).write_bytes(content)
    assert obtain(server).place == place
    assert server.asked == []


def test_any_compression_will_do(home, serve, obtain) -> None:
    packed = {f"/mine/{name}.gz": gzip.compress(content, 0) + gzip.compress(b"") for name, content in CONTENTS.items()}
    assert obtain(serve(None, packed)).contents == CONTENTS


def test_a_slow_server_is_given_all_the_time_it_takes(home, serve, obtain) -> None:
    def drip(answer: Answer) -> bool:
        answer.start()
        size = len(answer.rest) // 8 + 1
        for start in range(0, len(answer.rest), size):
            time.sleep(0.15)
            answer.wfile.write(answer.rest[start : start + size])
        return True

    start = time.monotonic()
    assert obtain(serve(drip)).contents == CONTENTS
    assert time.monotonic() - start > 2 * fetch.SILENCE_SECONDS


def test_a_redirect_is_followed(home, serve, obtain) -> None:
    real = serve()

    def elsewhere(answer: Answer) -> bool:
        answer.send_response(302)
        answer.send_header("Location", real.base + answer.path)
        answer.send_header("Content-Length", "0")
        answer.end_headers()
        return True

    assert obtain(serve(elsewhere)).contents == CONTENTS


# What is cut off


def test_a_file_that_is_cut_off_is_continued_where_it_stopped(home, serve, obtain) -> None:
    server = serve(cut_once(0.5))
    assert obtain(server).contents == CONTENTS
    half = len(PACKED[f"/mine/{IMAGES}.gz"]) // 2
    assert server.asked[:2] == [(f"/mine/{IMAGES}.gz", ""), (f"/mine/{IMAGES}.gz", f"bytes={half}-")]
    assert left(folder(home)) == WHOLE


def test_a_server_without_ranges_sends_the_file_again_from_the_start(home, serve, obtain) -> None:
    def act(answer: Answer) -> bool:
        if answer.n > 1:
            answer.whole(ranges=False)
            return True
        return cut_once(0.5)(answer)

    assert obtain(serve(act)).contents == CONTENTS


def test_a_server_that_always_cuts_is_left_for_the_next_which_goes_on_from_there(home, serve, obtain) -> None:
    def stingy(answer: Answer) -> bool:
        answer.start(ranges=False)
        answer.wfile.write(answer.rest[: len(answer.rest) // 2])
        return True

    server, other = serve(stingy), serve()
    assert obtain(server, other).contents == CONTENTS
    half = len(PACKED[f"/mine/{IMAGES}.gz"]) // 2
    assert (f"/mine/{IMAGES}.gz", f"bytes={half}-") in other.asked
    assert len(server.asked) < 2 * fetch.ATTEMPTS + 1


def test_the_next_mirror_may_compress_otherwise(home, serve, obtain) -> None:
    """Two halves that do not fit together are found out, and the file is fetched once more, from its first byte."""

    def half(answer: Answer) -> bool:
        answer.start(ranges=False)
        answer.wfile.write(answer.rest[: len(answer.rest) // 2])
        return True

    stored = {f"/mine/{name}.gz": gzip.compress(content, 0, mtime=0) for name, content in CONTENTS.items()}
    other = serve(None, stored)
    assert obtain(serve(half), other).contents == CONTENTS
    assert [asked for path, asked in other.asked if IMAGES in path][-1] == ""


def test_a_part_that_is_whole_already_is_used(home, serve, obtain) -> None:
    folder(home).mkdir(parents=True)
    (folder(home) / f"{IMAGES}.gz.part").write_bytes(PACKED[f"/mine/{IMAGES}.gz"])
    server = serve()
    assert obtain(server).contents == CONTENTS
    assert server.paths.count(f"{IMAGES}.gz") == 1  # answered 416


@pytest.mark.parametrize("rubbish", [b"rubbish" * 100, bytes(10**6), b""])
def test_a_part_that_is_no_part_is_not_continued_for_ever(rubbish, home, serve, obtain) -> None:
    folder(home).mkdir(parents=True)
    (folder(home) / f"{IMAGES}.gz.part").write_bytes(rubbish)
    assert obtain(serve()).contents == CONTENTS
    assert left(folder(home)) == WHOLE


def test_a_file_that_has_arrived_stays_when_the_next_one_does_not(home, serve, obtain) -> None:
    first = {path: body for path, body in PACKED.items() if IMAGES in path}
    with pytest.raises(DataError, match=f"lacks {LABELS}(.|\n)*{LABELS}.gz: it answered 404"):
        obtain(serve(None, first))
    assert left(folder(home)) == {f"{IMAGES}.gz"}
    server = serve()
    assert obtain(server).contents == CONTENTS
    assert server.paths == [f"{LABELS}.gz"]


# What is wrong


def wrong(body: bytes) -> Callable[[Answer], bool]:
    def act(answer: Answer) -> bool:
        answer.send_response(200)
        answer.send_header("Content-Length", str(len(body)))
        answer.end_headers()
        answer.wfile.write(body)
        return True

    return act


def status(code: int) -> Callable[[Answer], bool]:
    def act(answer: Answer) -> bool:
        answer.send_error(code)
        return True

    return act


def hangs_up(answer: Answer) -> bool:
    answer.wfile.close()
    answer.connection.shutdown(socket.SHUT_RDWR)
    return True


def silent(answer: Answer) -> bool:
    time.sleep(1)
    return True


def falls_silent(answer: Answer) -> bool:
    answer.start()
    answer.wfile.write(answer.rest[:100])
    time.sleep(1)
    return True


def no_http(answer: Answer) -> bool:
    answer.wfile.write(b"220 ready\r\n")
    return True


def endless(answer: Answer) -> bool:
    answer.send_response(200)
    answer.end_headers()
    for _ in range(100):
        answer.wfile.write(bytes(2**16))
    return True


def elsewhere_in_the_file(answer: Answer) -> bool:
    """Cut once, then a partial answer that begins at another byte than it was asked for."""
    if answer.n == 1:
        return cut_once(0.5)(answer)
    assert answer.body is not None
    answer.send_response(206)
    answer.send_header("Content-Range", f"bytes 7-{len(answer.body) - 1}/{len(answer.body)}")
    answer.send_header("Content-Length", str(len(answer.body) - 7))
    answer.end_headers()
    answer.wfile.write(answer.body[7:])
    return True


def to_a_file(answer: Answer) -> bool:
    answer.send_response(302)
    answer.send_header("Location", "file:///etc/hostname")
    answer.end_headers()
    return True


GOOD = PACKED[f"/mine/{IMAGES}.gz"]
FAULTS: dict[str, tuple[Callable[[Answer], bool], str]] = {
    "404": (status(404), "answered 404"),
    "403": (status(403), "answered 403"),
    "500": (status(500), "answered 500"),
    "a page instead of the file": (wrong(b"<html>moved</html>"), "Not a gzipped file"),
    "other bytes": (wrong(gzip.compress(CONTENTS[IMAGES][::-1])), "SHA-256"),
    "a truncated gzip": (wrong(GOOD[:-100]), "ends too early"),
    "a flipped byte": (wrong(GOOD[:1000] + bytes([GOOD[1000] ^ 1]) + GOOD[1001:]), "damaged|SHA-256|CRC"),
    "nothing": (wrong(b""), "found 0 bytes|0 bytes"),
    "a bomb": (wrong(gzip.compress(bytes(10**8))), "more bytes"),
    "a large file": (wrong(bytes(300_000)), "offers 300000 bytes"),
    "an endless file": (endless, "sends more than"),
    "a connection that is closed": (hangs_up, "did not answer"),
    "silence": (silent, r"silent for 0\.5 s"),
    "silence in the middle": (falls_silent, r"silent for 0\.5 s"),
    "no HTTP": (no_http, "did not answer"),
    "another part of the file": (elsewhere_in_the_file, "went on at byte 7"),
    "a redirect to a file": (to_a_file, "answered 302"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_second_mirror_takes_over_when_the_first_fails(fault, home, serve, obtain) -> None:
    first = serve(FAULTS[fault][0])
    assert obtain(first, serve()).contents == CONTENTS
    assert first.asked
    assert left(folder(home)) == WHOLE


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mirror_that_fails_leaves_nothing_that_could_be_taken_for_the_file(fault, home, serve, obtain) -> None:
    act, reason = FAULTS[fault]
    server = serve(act)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        obtain(server)
    assert time.monotonic() - start < 5
    assert re.search(f"{server.base}/mine/{IMAGES}.gz: it .*({reason})", caught.value.cause), caught.value.cause
    assert caught.value.exit_code == 4
    assert not left(folder(home)) & (WHOLE | set(FILES))
    # And whatever is left does not keep a good mirror from completing it.
    assert obtain(serve()).contents == CONTENTS


def test_a_server_that_is_lost_is_not_asked_for_the_other_files(home, serve, obtain) -> None:
    first = serve(silent)
    obtain(first, serve())
    assert first.paths == [f"{IMAGES}.gz"]


def test_a_mirror_without_one_file_is_asked_for_the_others(home, serve, obtain) -> None:
    first = serve(None, {path: body for path, body in PACKED.items() if LABELS in path})
    second = serve()
    obtain(first, second)
    assert first.paths == [f"{IMAGES}.gz", f"{LABELS}.gz"]
    assert second.paths == [f"{IMAGES}.gz"]


def test_a_mirror_with_another_file_does_not_spoil_what_has_arrived(home, serve, obtain) -> None:
    folder(home).mkdir(parents=True)
    good = PACKED[f"/mine/{IMAGES}.gz"]
    (folder(home) / f"{IMAGES}.gz.part").write_bytes(good[:1000])
    second = serve()
    assert obtain(serve(wrong(bytes(300_000))), second).contents == CONTENTS
    assert second.asked[0] == (f"/mine/{IMAGES}.gz", "bytes=1000-")


# What is unreachable


def test_where_nothing_is_reachable_the_error_comes_within_seconds_and_says_what_to_do(home, obtain) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        start = time.monotonic()
        with pytest.raises(DataError) as caught:
            obtain(f"http://127.0.0.1:{closed.getsockname()[1]}", "http://no-such-host.invalid")
    assert time.monotonic() - start < 5
    for word in (*FILES, str(folder(home)), "data=digits", "no-such-host.invalid", "Connection refused", "DNNKIT_DATA"):
        assert word in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_name_that_nobody_looks_up_does_not_hold_up_the_error(home, obtain, monkeypatch) -> None:
    """Without a network the system's resolver may take half a minute for each name."""
    asked = threading.Event()

    def hang(*_: object, **__: object) -> None:
        asked.set()
        time.sleep(3)
        raise socket.gaierror("nobody answered")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"no connection within 0\.5 s"):
        obtain("http://mirror.example")
    assert asked.is_set()
    assert time.monotonic() - start < 2


def test_a_server_that_accepts_nothing_does_not_hold_up_the_error(home, obtain) -> None:
    """A full backlog: packets are dropped, as by a firewall."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        start = time.monotonic()
        with pytest.raises(DataError, match=r"cannot be reached \(no connection within"):
            obtain(f"http://127.0.0.1:{full.getsockname()[1]}")
        assert time.monotonic() - start < 3


def test_whether_the_socket_or_the_clock_gives_up_first_the_reason_is_the_same() -> None:
    def give_up() -> None:
        raise TimeoutError("timed out")

    with pytest.raises(TimeoutError, match="no connection within 5 s"):
        fetch._within(5, give_up)


def test_a_folder_that_cannot_be_written_is_said_to_be_the_reason(home, serve, obtain) -> None:
    (home / "root").write_text("a file, not a folder")
    with pytest.raises(DataError, match=f"nothing was downloaded: {home}/root/mine cannot be written"):
        obtain(serve(), root=home / "root")


@pytest.mark.parametrize("address", ["ftp://host/x", "file:///etc", "host/x"])
def test_a_mirror_that_is_not_http_is_refused(address, home, obtain) -> None:
    with pytest.raises(DataError, match="must begin with http:// or https://"):
        obtain(address)


# Credentials


def test_a_password_goes_to_its_own_server_and_nowhere_else(home, serve, obtain) -> None:
    other = serve()

    def elsewhere(answer: Answer) -> bool:
        answer.send_response(302)
        answer.send_header("Location", other.base + answer.path)
        answer.end_headers()
        return True

    server, told = serve(elsewhere), io.StringIO()
    obtain(server.base.replace("http://", "http://ada:p%40ss@"), console=Console(file=told, width=300))
    assert server.headers[0]["Authorization"] == "Basic YWRhOnBAc3M="  # ada:p@ss
    assert all("Authorization" not in headers for headers in other.headers)
    assert "ada" not in told.getvalue()
    assert f"{server.base}/mine/{IMAGES}.gz" in told.getvalue()


def test_a_password_is_not_in_the_error(home, serve, obtain) -> None:
    with pytest.raises(DataError) as caught:
        obtain(serve(status(401)).base.replace("http://", "http://ada:secret@") + "/x?token=hidden")
    assert "answered 401" in str(caught.value)
    for word in ("ada", "secret", "hidden"):
        assert word not in str(caught.value)


# Progress


def test_without_a_terminal_one_line_for_each_file_is_printed(home, serve, obtain) -> None:
    server, told = serve(), io.StringIO()
    obtain(server, console=Console(file=told, width=300))
    assert told.getvalue().splitlines() == [f"downloading {server.base}/mine/{name}.gz" for name in FILES]


def test_on_a_terminal_a_bar_shows_how_far_it_is(home, serve, obtain) -> None:
    told = io.StringIO()
    obtain(serve(), console=Console(file=told, width=120, force_terminal=True))
    assert IMAGES in told.getvalue()
    assert "100%" in told.getvalue() or "200.1/200.1 kB" in told.getvalue(), told.getvalue()


# Processes

PROGRAM = """
import sys
from dnnkit.data.download import obtain_files
from dnnkit.data.files import Known
files = {name: Known(sha, int(size)) for name, sha, size in (word.split(":") for word in sys.argv[1:])}
found = obtain_files(None, "mine", files, ())
print(sum(map(len, found.contents.values())))
"""


def start(server: Server) -> subprocess.Popen[str]:
    words = [f"{name}:{known.sha256}:{known.size}" for name, known in FILES.items()]
    environment = os.environ | {"DNNKIT_MIRRORS": server.base}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], env=environment, stdout=pipe, stderr=pipe, text=True)


def test_of_two_processes_one_downloads_and_the_other_uses_its_files(home, serve) -> None:
    both = threading.Event()

    def slow(answer: Answer) -> bool:
        both.wait(20)
        return False

    server = serve(slow)
    first = start(server)
    while not server.asked:
        time.sleep(0.01)
    second = start(server)
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    both.set()
    assert [process.communicate(timeout=60)[0] for process in (first, second)] == ["203000\n", "203000\n"]
    assert sorted(server.paths) == sorted(WHOLE)


def test_a_killed_download_leaves_a_part_which_the_next_run_completes(home, serve, obtain) -> None:
    written, done = 150_000, threading.Event()

    def stall(answer: Answer) -> bool:
        if answer.n > 1:
            return False
        answer.start()
        answer.wfile.write(answer.rest[:written])
        done.wait(20)
        return True

    server = serve(stall)
    process = start(server)
    part = folder(home) / f"{IMAGES}.gz.part"
    while not part.exists() or part.stat().st_size < written:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done.set()
    assert left(folder(home)) == {part.name}
    assert obtain(server).contents == CONTENTS
    assert server.asked[1] == (f"/mine/{IMAGES}.gz", f"bytes={written}-")
    assert left(folder(home)) == WHOLE
