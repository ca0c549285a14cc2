"""The MLflow store: opened once, created under a lock, and asked for experiments and runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import mlflow.store.db.utils
from filelock import FileLock
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dnnkit.sender import template
from dnnkit.sender.address import database
from dnnkit.sender.page import VIEW_TAG

LOCK_TIMEOUT = 180.0
DATABASE_ATTEMPTS = 4


class Store:
    """A tracking server or database at `uri`; new experiments keep their artifacts under `artifacts`, where a folder is given."""

    def __init__(self, uri: str, artifacts: Path | None) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self.opened = ""  # how a database came to be that was not there, in words

    @cached_property
    def client(self) -> MlflowClient:
        """The client. At the first use of a SQLite store its tables are created, by one process at a time.

        A fresh database begins as a copy of one that is migrated already (`template`), or is migrated where there can be none.
        """
        # MLflow would try an unreachable database for 102 s, during which this process could tell nobody.
        mlflow.store.db.utils.MAX_RETRY_COUNT = DATABASE_ATTEMPTS
        file = database(self.uri)
        if file is None:
            return MlflowClient(tracking_uri=self.uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=LOCK_TIMEOUT):
            self.opened = template.place(file)
            return MlflowClient(tracking_uri=self.uri)  # opens the file at once

    def experiment(self, name: str) -> str:
        """The id of the experiment, created if it does not exist. Raises MlflowException, also for one that is deleted."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=self._location(name)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was quicker
        return _usable(found, name)

    def find_run(self, experiment_id: str, uuid: str) -> str | None:
        """The run that was created for our run `uuid`, if there is one."""
        found = self.client.search_runs([experiment_id], f"tags.`dnnkit.run_uuid` = '{uuid}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def show_columns(self, experiment_id: str, metrics: Sequence[str]) -> None:
        """Has a table of the experiment's runs show these metrics, which MLflow by itself leaves out.

        It is a view that MLflow keeps as shared, beside whatever views users have: opened by `viewStateShareKey=dnnkit` in an address.
        """
        held = self.client.get_experiment(experiment_id).tags.get(VIEW_TAG)
        before = json.loads(held)["selectedColumns"] if held else []
        columns = list(dict.fromkeys([*before, *(f"metrics.`{key}`" for key in metrics)]))
        if columns != before:
            self.client.set_experiment_tag(experiment_id, VIEW_TAG, json.dumps({"selectedColumns": columns}))

    def _location(self, name: str) -> str | None:
        """An absolute address, so that artifacts are found from whatever folder the UI is started in."""
        if self._artifacts is None:
            return None
        return (self._artifacts / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "experiment")).absolute().as_uri()


def _usable(found: Experiment | None, name: str) -> str:
    if found is None or found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise MlflowException(f"the experiment {name!r} is deleted in MLflow: restore it there or choose another tracking.experiment")
    return str(found.experiment_id)
