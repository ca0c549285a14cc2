"""Who a run is: `run.json`, the config's digest and parameters, and what is safe to write of an address."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

from dnnkit.disk import read_json, write_json
from dnnkit.errors import DiskError

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
DnnkitStatus = Literal["running", "finished", "failed", "diverged", "interrupted", "killed"]
#: What MLflow is given of `signal/…`: a few summaries, all of it, layer by layer, or nothing.
Signal = Literal["summary", "layers", "none"]


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds. Times are ISO 8601 with the offset from UTC; `tracking_uri` is without credentials.

    `title` is what MLflow calls the run, None for its name; `command` makes the run again; `signal` is what MLflow is given of
    the signal: runs recorded before there was a choice gave it whole.

    A run that was resumed has in `earlier` what the parts before were, each by began, ended, status, dnnkit_status,
    exit_code, pid, host, version, and the `step` up to which it counts. `resumed` is when the last part began,
    `resumed_from` the checkpoint in the folder that it went on from, `resumed_step` the optimizer steps done by then (−1
    in a run that never was).
    """

    uuid: str
    name: str
    created: str
    version: str
    pid: int
    host: str
    status: Status = "RUNNING"
    dnnkit_status: DnnkitStatus = "running"
    ended: str | None = None
    exit_code: int | None = None
    experiment: str = "dnnkit"
    tracking_uri: str | None = None
    log_model: bool = False
    title: str | None = None
    command: str | None = None
    signal: Signal = "layers"
    earlier: list[dict[str, Any]] = field(default_factory=list)
    resumed: str | None = None
    resumed_from: str | None = None
    resumed_step: int = -1

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record of the run in `folder`; keys of a newer version are left alone. Raises DiskError if there is none."""
        try:
            held = read_json(folder / "run.json")
            return cls(**{field.name: held[field.name] for field in fields(cls) if field.name in held})
        except (OSError, ValueError, TypeError) as error:
            raise DiskError(f"{folder} is not a run folder: its run.json cannot be read ({error})", "Name a folder under runs/.") from error

    def write(self, folder: Path) -> None:
        """Replaces `folder`/run.json in one step."""
        write_json(folder / "run.json", asdict(self))

    def ended_as(self, status: Status, dnnkit_status: DnnkitStatus, exit_code: int | None) -> RunRecord:
        """The same run at its end, now."""
        return replace(self, status=status, dnnkit_status=dnnkit_status, exit_code=exit_code, ended=now())

    def resumed_at(self, step: int, checkpoint: str) -> RunRecord:
        """The same run, going on in this process from a checkpoint that was saved after `step` optimizer steps."""
        kept = ("ended", "status", "dnnkit_status", "exit_code", "pid", "host", "version")
        part = {"began": self.resumed or self.created, **{key: getattr(self, key) for key in kept}, "step": step}
        return replace(
            self, pid=os.getpid(), host=socket.gethostname(), version=version(), status="RUNNING", dnnkit_status="running", ended=None,
            exit_code=None, earlier=[*self.earlier, part], resumed=now(), resumed_from=checkpoint, resumed_step=step,
        )  # fmt: skip

    def process_is_gone(self) -> bool:
        """Whether the training process is known to have died; a process on another host is never known to."""
        return self.host == socket.gethostname() and not process_lives(self.pid)


def now() -> str:
    """The local time with its offset, to the millisecond."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def process_lives(pid: int) -> bool:
    """Whether process `pid` of this host runs; one that has ended and only awaits its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to someone else
        return True
    stat = Path(f"/proc/{pid}/stat")  # absent on macOS, where a zombie counts as alive until it is reaped
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return not Path("/proc/self/stat").exists()


def version() -> str:
    """The installed version of dnnkit, or `unknown` in a checkout that was never installed."""
    try:
        return metadata.version("dnnkit")
    except metadata.PackageNotFoundError:
        return "unknown"


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the config as canonical JSON (sorted keys, no blanks), so that the order of keys does not count."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """The config as MLflow parameters: `{"model.hidden": "[300, 100]", "seed": "0"}`.

    Keys are joined by dots. Text stays as it is; every other value, a list and an empty group among them, is one
    JSON value (`null`, `true`, `0.05`). Nothing is cut.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{inner}": text for inner, text in flatten(value).items()})
        else:
            flat[str(key)] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def strip_credentials(uri: str) -> str:
    """`uri` without user, password and query: `https://me:pw@host/x?token=t` becomes `https://host/x`.

    A query is kept only where the address is a local file, whose options are no secret.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme.startswith(("sqlite", "file")):
        return uri
    bare = rest.partition("#")[0].partition("?")[0]
    # A password may hold unescaped '/' or '@', so everything up to the last '@' goes.
    return f"{scheme}://{bare.rpartition('@')[2]}"


def scrub(text: str, uri: str) -> str:
    """`text`, a message that may quote `uri` or parts of it, with the secrets of that address blotted out."""
    if strip_credentials(uri) == uri:
        return text
    bare, _, query = uri.partition("://")[2].partition("#")[0].partition("?")
    user = bare.rpartition("@")[0]
    secrets = {user, user.partition(":")[2], query, *(value for _, value in parse_qsl(query))} - {""}
    text = text.replace(uri, strip_credentials(uri))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def git_state(folder: Path) -> str:
    """The commit that `folder` is at, with `-dirty` where a tracked file differs from it; `none` without git."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return "none"
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, or nothing where git, the repository or the commit is missing."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
