"""The run folder: the truth about one run, written by the training process alone.

runs/2031-05-04_101112_digits_1a2b3c4d/
    run.json  params.json  tags.json  dataset.json  metrics.jsonl  timing.jsonl  run.log
    config/  environment/  checkpoints/  diagnostics/  figures/
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dnnkit.disk import disk, read_json, sync_folder, write_json, write_text
from dnnkit.record.environment import environment, packages
from dnnkit.record.identity import DnnkitStatus, RunRecord, Status, config_digest, flatten, git_state, now, strip_credentials, version
from dnnkit.record.journal import Journal
from dnnkit.record.log import RunLog

#: What is kept of the parts of a run that was resumed.
_OF_A_PART = (
    *("config/config.yaml", "config/overrides.yaml"),
    *("environment/environment.json", "environment/packages.txt", "environment/engine.json"),
)
SUBFOLDERS = ("config", "environment", "checkpoints", "diagnostics", "figures")


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. Every method that writes raises DiskError where it cannot."""

    path: Path

    @property
    def record(self) -> RunRecord:
        """`run.json` as it stands."""
        return RunRecord.read(self.path)

    @cached_property
    def journal(self) -> Journal:
        """The open journals; opened at first use, closed by `finish`."""
        return Journal(self.path)

    @property
    def resume_point(self) -> Path | None:
        """The checkpoint that this run, resumed, goes on from; None in one that began at the start."""
        name = self.record.resumed_from
        return None if name is None else self.path / name

    def log(self) -> RunLog:
        """A context manager that fills `run.log`; leave it before `finish`, so that the log is whole when it is uploaded."""
        return RunLog(self.path / "run.log")

    def write_config(self, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        """`config/config.yaml` (resolved), `config/overrides.yaml` (as typed) and `params.json` (flattened)."""
        write_text(self.path / "config" / "config.yaml", _yaml(config))
        write_text(self.path / "config" / "overrides.yaml", _yaml(list(overrides)))
        write_json(self.path / "params.json", flatten(config))

    def write_environment(self, device: str) -> None:
        """`environment/environment.json` and `environment/packages.txt`, a requirements file."""
        write_json(self.path / "environment" / "environment.json", environment(device))
        write_text(self.path / "environment" / "packages.txt", packages())

    def write_engine(self, report: Mapping[str, Any]) -> None:
        """`environment/engine.json`: how training steps were run, and why; the times by which `trainer.engine=auto` chose."""
        write_json(self.path / "environment" / "engine.json", dict(report))

    def keep_earlier(self) -> int:
        """Keeps config and environment of the part of the run that is over, as `config.1.yaml` and so on; the part's number."""
        number = 1 + len(list((self.path / "config").glob("config.*.yaml")))
        for name in _OF_A_PART:
            path = self.path / name
            if path.exists():
                write_text(path.with_name(f"{path.stem}.{number}{path.suffix}"), path.read_text("utf-8"))
        return number

    def change_config(self, before: Mapping[str, Any], config: Mapping[str, Any], overrides: Sequence[str], step: int) -> None:
        """`config/` becomes that of a resumed run; `params.json` stays, because MLflow lets no parameter change.

        Each setting that changed gets a tag `dnnkit.changed.<setting>`: a JSON list of `{"from", "to", "step", "at"}`.
        """
        write_text(self.path / "config" / "config.yaml", _yaml(config))
        write_text(self.path / "config" / "overrides.yaml", _yaml(list(overrides)))
        old, new = flatten(before), flatten(config)
        self._note_changes({key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}, step)

    def change_tags(self, config: Mapping[str, Any], *, device: str, plugins: Mapping[str, str], step: int) -> None:
        """`tags.json` as `write_tags` makes it, for a resumed run; what had another value before is noted as a change."""
        before = read_files(self.path, "tags.json")
        after = {**before, **self._tags(config, device, plugins)}
        write_json(self.path / "tags.json", after)
        changed = {key for key in after if key.startswith("dnnkit.") and key != "dnnkit.config_digest" and before.get(key) != after[key]}
        self._note_changes({key.removeprefix("dnnkit."): (before.get(key), after[key]) for key in sorted(changed)}, step)

    def _note_changes(self, changes: Mapping[str, tuple[str | None, str | None]], step: int) -> None:
        tags = read_files(self.path, "tags.json")
        for key, (old, new) in changes.items():
            name = f"dnnkit.changed.{key}"
            note = {"from": _value(old), "to": _value(new), "step": step, "at": now()}
            tags[name] = json.dumps([*json.loads(tags.get(name, "[]")), note], ensure_ascii=False)
        write_json(self.path / "tags.json", tags)

    def write_tags(self, config: Mapping[str, Any], *, device: str, plugins: Mapping[str, str], sweep: str | None = None) -> None:
        """`tags.json`: version, uuid, digest, git state of the working folder, `plugins` as {package: version}, device, sweep.

        The tag `dnnkit.status` is not among them: it follows `run.json`.
        """
        tags = self._tags(config, device, plugins)
        write_json(self.path / "tags.json", tags if sweep is None else {**tags, "dnnkit.sweep": sweep})

    def _tags(self, config: Mapping[str, Any], device: str, plugins: Mapping[str, str]) -> dict[str, str]:
        return {
            "dnnkit.version": version(),
            "dnnkit.run_uuid": self.record.uuid,
            "dnnkit.config_digest": config_digest(config),
            "dnnkit.git": git_state(Path.cwd()),
            "dnnkit.plugins": json.dumps(dict(sorted(plugins.items()))),
            "dnnkit.device": device,
        }

    def write_dataset(
        self, name: str, fingerprint: str, *, origin: str, inputs: Sequence[int], card: Mapping[str, Any], values: int | None = None
    ) -> None:
        """`dataset.json`, in the fields of an MLflow dataset: shapes as a tensor schema, the card as its profile.

        `values`: how many a target holds; None where it is a class.
        MLflow holds 36 characters of a digest: it gets the first 36 of `fingerprint`, which stands whole in the source.
        """
        spec = {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, *inputs]}}
        tensor = {"dtype": "int64", "shape": [-1]} if values is None else {"dtype": "float32", "shape": [-1, values]}
        target = {"type": "tensor", "tensor-spec": tensor}
        dataset = {
            "name": name,
            "digest": fingerprint[:36],
            "source_type": "local",
            "source": json.dumps({"uri": strip_credentials(origin), "fingerprint": fingerprint}),
            "schema": json.dumps({"mlflow_tensorspec": {"features": json.dumps([spec]), "targets": json.dumps([target])}}),
            "profile": json.dumps(card),
        }
        write_json(self.path / "dataset.json", dataset)

    def finish(self, status: Status, dnnkit_status: DnnkitStatus, exit_code: int) -> RunRecord:
        """Closes the journals and then writes the end into `run.json`, which tells the sender that the folder is complete."""
        self.journal.close()
        ended = self.record.ended_as(status, dnnkit_status, exit_code)
        ended.write(self.path)
        return ended


def new_run(parent: Path, name: str, *, tracking_uri: str | None = None, **facts: Any) -> RunFolder:
    """A fresh folder `<YYYY-MM-DD>_<HHMMSS>_<name>_<id>` under `parent` (absolute from now on), with its `run.json`.

    The folder is built under a hidden name and renamed, so that one that can be seen is complete. Credentials in
    `tracking_uri` are left out of the record. `facts`: fields of the RunRecord, such as `experiment`. Raises DiskError.
    """
    identity = str(uuid.uuid4())
    final = Path(parent).absolute() / f"{datetime.now():%Y-%m-%d_%H%M%S}_{_file_name(name)}_{identity[:8]}"
    building = final.with_name(f".{final.name}.tmp")
    record = RunRecord(
        uuid=identity,
        name=name,
        created=now(),
        version=version(),
        pid=os.getpid(),
        host=socket.gethostname(),
        tracking_uri=None if tracking_uri is None else strip_credentials(tracking_uri),
        **facts,
    )
    with disk(final):
        try:
            for part in SUBFOLDERS:
                (building / part).mkdir(parents=True)
            record.write(building)
            building.rename(final)
            sync_folder(final.parent)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return RunFolder(final)


def read_files(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the run folder such as `params.json`; empty where the run did not get as far as writing it."""
    path = folder / name
    return dict(read_json(path)) if path.exists() else {}


def _file_name(name: str) -> str:
    """`name` in letters, digits, dot, dash and underscore, at most 64 of them."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.")[:64] or "run"


def _value(text: str | None) -> Any:
    """What `flatten` made this text of, as far as that can be told."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _yaml(value: Any) -> str:
    plain = dict(value) if isinstance(value, Mapping) else value
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))
