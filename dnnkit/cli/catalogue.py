"""What can be chosen, read from the registry, live or kept from an earlier command, and the config tree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dnnkit import plugins
from dnnkit.cli.preset import preset, preset_page
from dnnkit.cli.stored import kept
from dnnkit.config.guard import Guard
from dnnkit.config.loader import presets, shipped, sweep_files
from dnnkit.config.sections import GROUPS, SECTIONS, Top
from dnnkit.config.triage import offered
from dnnkit.errors import ConfigError, Problem, nearest
from dnnkit.registry import KINDS, REGISTRIES, Component
from dnnkit.schema import Settings, component_settings, kind_settings, spelt_values, words

_SWITCHES = {
    ("initializer", "auto"): "what the activation pairs with",
    ("task", "auto"): "what the targets and the model are for",
}


#: Every group that can be listed.
LISTED = ("task", *GROUPS, "metrics", "lint", "trainer", "tracking", "experiment", "sweeps")


def registered() -> dict[str, Any]:
    """What the plugins have registered: `components` by group and name, `plugins` as they are listed, `conf` their presets.

    Kept from an earlier command where that is certain to hold (`stored`), so that PyTorch need not be imported for it.
    """
    return _live() if any(REGISTRIES.values()) else kept(with_completion)


def _live() -> dict[str, Any]:
    found = plugins.load()
    live = {
        "keep": not any(plugin.error for plugin in found),
        "plugins": [
            {
                "name": plugin.name,
                "package": plugin.package,
                "version": plugin.version,
                "module": plugin.module,
                "components": [f"{group}={name}" for group, name in plugin.components],
                "error": plugin.error,
            }
            for plugin in found
        ],
        "conf": [[plugin.package, str(plugin.conf)] for plugin in found if plugin.conf is not None],
        "components": {group: {record.name: _component(record) for record in registry} for group, registry in REGISTRIES.items()},
    }
    return dict(json.loads(json.dumps(live)))


def with_completion() -> dict[str, Any]:
    """What is kept: what the plugins have registered, and as `completion` what completion needs."""
    return {**_live(), "completion": dict(json.loads(json.dumps(_completion())))}


def _completion() -> dict[str, Any]:
    """Of each choice its summary and settings, those of sections, and where the presets are."""
    sections = {"": Top, **SECTIONS}
    return {
        "listed": LISTED,
        "groups": {group: _of_group(group) for group in ("task", *GROUPS, "metrics", "lint")},
        "sections": {name: _told(Settings.of(declared)) for name, declared in sections.items()},
        "defaults": {group: str(entry[group]) for entry in _main_defaults() for group in entry if isinstance(entry, dict)},
        "conf": str(shipped("conf")),
        "sweeps": str(shipped("sweeps")),
    }


def _of_group(group: str) -> dict[str, Any]:
    rows = {name: {"summary": about, "settings": _told(kind_settings(group))} for name, about in switches(group, _task_facts()).items()}
    components = {component.name: (component.summary, component_settings(component)) for component in REGISTRIES[group]}
    return {**rows, **{name: {"summary": summary, "settings": _told(settings)} for name, (summary, settings) in components.items()}}


def _told(settings: Settings) -> dict[str, Any]:
    """The settings but the name, each with its rule and the values that can be told."""
    found = {name: settings.annotation(name) for name in settings.names() if name != "name"}
    return {name: {"rule": words(annotation), "values": spelt_values(annotation)} for name, annotation in found.items()}


def _main_defaults() -> list[Any]:
    tree = yaml.safe_load((shipped("conf") / "config.yaml").read_text(encoding="utf-8"))
    return list(tree["defaults"])


def _component(record: Component) -> dict[str, Any]:
    """A record, and the rules of those settings whose type has bounds within it, which only the annotation itself holds."""
    compound = [setting.name for setting in record.settings if setting.type not in REGISTRY_TYPES]
    settings = component_settings(record) if compound else None
    return {"record": record.to_dict(), "rules": {name: words(settings.annotation(name)) for name in compound if settings is not None}}


def _presets(held: dict[str, Any]) -> Guard:
    return presets([(package, Path(conf)) for package, conf in held["conf"]], held["components"])


def groups() -> list[dict[str, str]]:
    """Every group that can be listed, with the names that it offers."""
    held = registered()
    guard = _presets(held)
    return [{"name": group, "summary": ", ".join(row["name"] for row in _choices(group, held, guard))} for group in LISTED]


def choices(group: str) -> list[dict[str, str]]:
    """The choices of one group: name, summary, origin. Raises ConfigError for a group that there is not."""
    held = registered()
    return _choices(group, held, _presets(held))


def _choices(group: str, held: dict[str, Any], guard: Guard) -> list[dict[str, str]]:
    if group not in LISTED:
        raise ConfigError([Problem(group, f"there is no group of this name; there are: {', '.join(LISTED)}", nearest(group, LISTED))])
    if group in REGISTRIES:
        named = [_row(name, _summary(found["record"]), _package(found["record"])) for name, found in held["components"][group].items()]
        switched = [_row(name, summary, "dnnkit") for name, summary in switches(group, _task_facts(held)).items()]
        return switched + named + _files(group, guard)
    if group == "sweeps":
        return [
            _row(name, _headline(path), "dnnkit" if path.parent == shipped("sweeps") else str(path)) for name, path in sweep_files().items()
        ]
    return _files(group, guard)


def switches(group: str, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The names of a group that choose no component, such as `none` and `auto`, and what they stand for.

    `tasks` are the facts of each task, which say what `loss=auto` and `metrics=auto` are.
    """
    return {name: _SWITCHES.get((group, name)) or _of_tasks(group, tasks) for name in KINDS[group].switches}


def _of_tasks(group: str, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    wanted = {name: facts[group] for name, facts in tasks.items() if group in facts}
    told = [f"{_and([names] if isinstance(names, str) else names)} for {name}" for name, names in wanted.items()]
    return f"what the task wants: {'; '.join(told)}" if told else "nothing"


def _and(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _task_facts(held: Mapping[str, Any] | None = None) -> dict[str, Mapping[str, Any]]:
    """The facts of every task, by name, of what is registered or was kept."""
    if held is None:
        return {record.name: record.facts for record in REGISTRIES["task"]}
    return {name: found["record"]["facts"] for name, found in held["components"]["task"].items()}


def _row(name: str, summary: str, origin: str) -> dict[str, str]:
    return {"name": name, "summary": summary, "origin": origin}


def _summary(record: dict[str, Any]) -> str:
    """What a component is for; of a rule of the linter that speaks on request alone, how it is asked too."""
    request = record["kind"] == "lint" and record["facts"].get("on_request")
    return f"{record['summary']} On request: lint.severity={{{record['name']}: hint}}." if request else str(record["summary"])


def _package(record: dict[str, Any]) -> str:
    return f"{record['origin']['package']} {record['origin']['version']}".strip()


def _files(group: str, guard: Guard) -> list[dict[str, str]]:
    """The presets of a group on the search path, those in a folder as `folder/name`; of two of one name the first."""
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
    held = registered()
    rows = {row["name"]: row for row in _choices(group, held, _presets(held))}
    if name not in rows:
        kind = KINDS[group].name if group in KINDS else group
        message = f"there is no {kind} of this name; there are: {', '.join(offered(name, list(rows)))}"
        raise ConfigError([Problem(f"{group}={name}", message, nearest(name, rows))])
    if group in REGISTRIES and name in held["components"][group]:
        shared = kind_settings(group)
        common = [{"name": key, "rule": words(shared.annotation(key)), "default": default} for key, default in shared.defaults().items()]
        return {**held["components"][group][name]["record"], "common_settings": common}
    path = _path(group, name, _presets(held))
    return {"kind": group, **rows[name], **(preset(group, name, path) if path is not None else {})}


def everywhere(name: str) -> list[tuple[str, str]]:
    """Every group with the choice that a bare name is the name of; of those in folders the last part will do."""
    held = registered()
    guard = _presets(held)
    named = [(group, row["name"]) for group in LISTED for row in _choices(group, held, guard)]
    exact = [(group, full) for group, full in named if full == name]
    return exact or [(group, full) for group, full in named if full.rpartition("/")[2] == name]


def found_choice(name: str) -> tuple[str, str]:
    """The one choice of this name: its group and its full name. ConfigError for none, or for several, with the commands.

    The name of a group is that of a choice in this group, such as dropout, or of none.
    """
    found = [one for one in everywhere(name) if name not in LISTED or one[0] == name]
    if len(found) == 1:
        return found[0]
    if found:
        commands = "".join(f"\n      dnnkit describe {group} {full}" for group, full in found)
        raise ConfigError([Problem(name, f"is the name of {len(found)} choices:{commands}\n    Type one of these")])
    held = registered()
    guard = _presets(held)
    named = {row["name"]: group for group in LISTED for row in _choices(group, held, guard)}
    if name in LISTED:
        raise ConfigError([Problem(name, "is a group; the command is: dnnkit describe GROUP NAME", (f"dnnkit list {name}",))])
    close = tuple(f"dnnkit describe {named[full]} {full}" for full in nearest(name, named))
    raise ConfigError([Problem(name, "there is no choice of this name in any group; dnnkit list shows all", close)])


def _path(group: str, name: str, guard: Guard) -> Path | None:
    """The file of a preset; None for a component or a switch."""
    if group == "sweeps":
        return sweep_files().get(name)
    paths = [Path(source.path) / group / f"{name}.yaml" for source in guard.get_sources() if source.scheme() == "file"]
    return next((path for path in paths if path.is_file()), None)


def page(found: dict[str, Any]) -> str:
    """A record for reading in a terminal."""
    if "command" in found:
        return preset_page(found)
    if "settings" not in found:
        return f"{found['kind']}={found['name']}\n\n{found['summary']}\n\nfrom {found['origin']}"
    origin = found["origin"]
    parts = [f"{found['kind']}={found['name']}", found["doc"] or "(no description)"]
    if found["settings"]:
        rules = registered()["components"][found["kind"]][found["name"]]["rules"]
        parts.append("settings:\n" + "\n".join(_setting_line(found["kind"], row, rules) for row in found["settings"]))
    if found["common_settings"]:
        lines = [f"  {found['kind']}.{row['name']} = {_yaml(row['default'])}   {row['rule']}" for row in found["common_settings"]]
        parts.append(f"settings of every {KINDS[found['kind']].name}:\n" + "\n".join(lines))
    if found["facts"]:
        parts.append("\n".join(f"{key}: {value}" for key, value in found["facts"].items()))
    parts.append(f"from {origin['package']} {origin['version']} ({origin['module']})")
    return "\n\n".join(parts)


def _setting_line(group: str, row: dict[str, Any], rules: dict[str, str]) -> str:
    default = "has to be given" if row["required"] else f"= {_yaml(row['default'])}"
    if row["type"] not in REGISTRY_TYPES:
        return f"  {group}.{row['name']} {default}   {rules[row['name']]}"
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of", "min_length": "length ≥", "max_length": "length ≤"}
    bounds = ", ".join(f"{signs[bound]} {value}" for bound, value in row["bounds"].items())
    return f"  {group}.{row['name']} {default}   {words(REGISTRY_TYPES[row['type']])}{', ' + bounds if bounds else ''}"


REGISTRY_TYPES = {"float": float, "int": int, "bool": bool, "str": str}


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
