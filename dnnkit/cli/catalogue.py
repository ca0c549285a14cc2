"""What can be chosen, read from the live registry and the config tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnnkit import plugins
from dnnkit.config.loader import Loader, shipped, sweep_files
from dnnkit.config.sections import GROUPS
from dnnkit.config.triage import offered
from dnnkit.errors import ConfigError, Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES, Component
from dnnkit.schema import component_settings, kind_settings, words

_SWITCHES = {
    ("initializer", "auto"): "what the activation pairs with",
    ("loss", "auto"): "what the task wants: cross_entropy for classification, huber for regression, mse for reconstruction",
    ("metrics", "auto"): "what the task wants: acc for classification, mse, mae and r2 for regression, mse for reconstruction",
}


#: Every group that can be listed.
LISTED = (*GROUPS, "metrics", "trainer", "tracking", "experiment", "sweeps")


def groups() -> list[dict[str, str]]:
    """Every group that can be listed, with the names that it offers."""
    loader = Loader()
    return [{"name": group, "summary": ", ".join(row["name"] for row in choices(group, loader))} for group in LISTED]


def choices(group: str, loader: Loader | None = None) -> list[dict[str, str]]:
    """The choices of one group: name, summary, origin. Raises ConfigError for a group that there is not."""
    plugins.load()
    if group not in LISTED:
        raise ConfigError([Problem(group, f"there is no group of this name; there are: {', '.join(LISTED)}", nearest(group, LISTED))])
    if group in REGISTRIES:
        named = [_row(record.name, record.summary, _package(record)) for record in REGISTRIES[group]]
        return [_row(name, summary, "dnnkit") for name, summary in switches(group).items()] + named + _files(group, loader)
    if group == "sweeps":
        return [
            _row(name, _headline(path), "dnnkit" if path.parent == shipped("sweeps") else str(path)) for name, path in sweep_files().items()
        ]
    return _files(group, loader)


def switches(group: str) -> dict[str, str]:
    """The names of a group that choose no component, such as `none` and `auto`, and what they stand for."""
    return {name: _SWITCHES.get((group, name), "nothing") for name in KINDS[group].switches}


def _row(name: str, summary: str, origin: str) -> dict[str, str]:
    return {"name": name, "summary": summary, "origin": origin}


def _package(record: Component) -> str:
    return f"{record.origin.package} {record.origin.version}".strip()


def _files(group: str, loader: Loader | None) -> list[dict[str, str]]:
    """The presets of a group on the search path, those in a folder as `folder/name`; of two of one name the first."""
    guard = (loader or Loader()).guard
    found: dict[str, dict[str, str]] = {}
    for source in guard.get_sources():
        for name in guard.get_group_options(group) if source.scheme() == "file" else ():
            path = Path(source.path) / group / f"{name}.yaml"
            if path.is_file():
                found.setdefault(name, _row(name, _headline(path), source.provider.replace("main", "dnnkit")))
    return list(found.values())


def _headline(path: Path) -> str:
    """The first sentence of a file's opening comment that is not the command that runs it."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if text and not text.startswith(("python -m", "dnnkit ", "@")):
            lines.append(text)
    return " ".join(lines).partition(". ")[0].rstrip(".") + ("." if lines else "")


def record(group: str, name: str) -> dict[str, Any]:
    """All that is known of one choice. Raises ConfigError with the nearest names where there is none."""
    rows = {row["name"]: row for row in choices(group)}
    if name not in rows:
        kind = KINDS[group].name if group in KINDS else group
        message = f"there is no {kind} of this name; there are: {', '.join(offered(name, list(rows)))}"
        raise ConfigError([Problem(f"{group}={name}", message, nearest(name, rows))])
    if group in REGISTRIES and name in REGISTRIES[group]:
        component = REGISTRIES[group].get(name)
        shared = kind_settings(group)
        common = [{"name": key, "rule": words(shared.annotation(key)), "default": default} for key, default in shared.defaults().items()]
        return {**component.to_dict(), "common_settings": common}
    return {"kind": group, **rows[name]}


def page(found: dict[str, Any]) -> str:
    """A record for reading in a terminal."""
    if "settings" not in found:
        return f"{found['kind']}={found['name']}\n\n{found['summary']}\n\nfrom {found['origin']}"
    origin = found["origin"]
    parts = [f"{found['kind']}={found['name']}", found["doc"] or "(no description)"]
    if found["settings"]:
        parts.append("settings:\n" + "\n".join(_setting_line(found["kind"], found["name"], row) for row in found["settings"]))
    if found["common_settings"]:
        lines = [f"  {found['kind']}.{row['name']} = {_yaml(row['default'])}   {row['rule']}" for row in found["common_settings"]]
        parts.append(f"settings of every {KINDS[found['kind']].name}:\n" + "\n".join(lines))
    if found["facts"]:
        parts.append("\n".join(f"{key}: {value}" for key, value in found["facts"].items()))
    parts.append(f"from {origin['package']} {origin['version']} ({origin['module']})")
    return "\n\n".join(parts)


def _setting_line(group: str, name: str, row: dict[str, Any]) -> str:
    default = "has to be given" if row["required"] else f"= {_yaml(row['default'])}"
    if row["type"] not in REGISTRY_TYPES:
        # A type of several parts has bounds within them, which only the annotation itself still holds.
        rule = words(component_settings(REGISTRIES[group].get(name)).annotation(row["name"]))
        return f"  {group}.{row['name']} {default}   {rule}"
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of", "min_length": "length ≥", "max_length": "length ≤"}
    bounds = ", ".join(f"{signs[bound]} {value}" for bound, value in row["bounds"].items())
    return f"  {group}.{row['name']} {default}   {words(REGISTRY_TYPES[row['type']])}{', ' + bounds if bounds else ''}"


REGISTRY_TYPES = {"float": float, "int": int, "bool": bool, "str": str}


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
