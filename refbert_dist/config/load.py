"""From a YAML file and dotted overrides to a validated :class:`Experiment`, and back to YAML."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from refbert_dist.config.schema import Experiment, Section
from refbert_dist.errors import UserError, did_you_mean

M = TypeVar("M", bound=BaseModel)


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment file and apply ``section.field=value`` overrides, whose values are read as YAML.

    Raises :class:`UserError` naming the field, the value and the fix.
    """
    return parse_experiment(apply_overrides(read_yaml(path), overrides))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; every way this can go wrong is one sentence."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a YAML file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        problem = getattr(error, "problem", None) or "syntax error"
        raise UserError(f"{path} is not valid YAML at {where}: {problem}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__} at its top; it must be a mapping of sections")
    return data


def read_about_experiment(path: str | Path) -> dict[str, Any]:
    """Read a file about many runs of one experiment: a search, a table.

    Its ``experiment`` holds the sections of an experiment file, or ``file`` (beside this one) and what differs from it;
    here the latter has become the former.
    """
    data = read_yaml(path)
    given = data.get("experiment", {})
    if isinstance(given, dict) and "file" in given:
        file = Path(path).parent / str(given["file"])
        given = merged(read_yaml(file), {name: value for name, value in given.items() if name != "file"})
    if not isinstance(given, dict):
        raise UserError(f"experiment is {given!r} in {path}; write its sections, or file: EXPERIMENT.yaml")
    return {**data, "experiment": given}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` over it, section by section."""
    result = dict(base)
    for name, value in changes.items():
        standing = result.get(name)
        nested = isinstance(standing, dict) and isinstance(value, dict)
        result[name] = merged(standing or {}, value) if nested else value
    return result


def overrides_of(model: type[BaseModel], overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Overrides parted into those that begin with a field of ``model``, and the others."""
    own: list[str] = []
    others: list[str] = []
    for override in overrides:
        (own if override.split("=")[0].split(".")[0] in model.model_fields else others).append(override)
    return own, others


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with each ``a.b=value`` set."""
    result: dict[str, Any] = json.loads(json.dumps(data, default=str))
    for override in overrides:
        name, sign, text = override.partition("=")
        if not sign or not name:
            raise UserError(f"override '{override}' has no value; write it as section.field=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"override '{override}' has a value that is not valid YAML; quote it") from None
        *parents, leaf = name.split(".")
        place = result
        for depth, parent in enumerate(parents):
            child = place.get(parent)
            if child is None:
                child = place[parent] = {}
            if not isinstance(child, dict):
                raise UserError(f"override '{override}': {'.'.join(parents[: depth + 1])} is a value, not a section")
            place = child
        place[leaf] = value
    return result


def parse_experiment(data: Mapping[str, Any]) -> Experiment:
    """Validate a plain mapping; all faults are reported together, one sentence each."""
    return parse_model(Experiment, data)


def parse_model(model: type[M], data: Mapping[str, Any]) -> M:
    """Validate ``data`` as ``model``, turning pydantic's report into sentences."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        places = [_place(item) for item in found]
        # Of a field that may be one thing or another, the branch that got furthest is the one that was meant.
        meant = [
            item for item, own in zip(found, places, strict=True) if not any(_below(own, other) for other in places)
        ]
        raise UserError("; ".join(dict.fromkeys(_sentence(model, item) for item in meant))) from None


def _place(item: ErrorDetails) -> tuple[str | int, ...]:
    return tuple(part for part in item["loc"] if not _is_union_branch(part))


def _below(place: tuple[str | int, ...], other: tuple[str | int, ...]) -> bool:
    return len(other) > len(place) and other[: len(place)] == place


def _sentence(model: type[BaseModel], item: ErrorDetails) -> str:
    path = _place(item)
    name = ".".join(str(part) for part in path)
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return f"{name} is not a known key{did_you_mean(str(path[-1]), known)}"
    if item["type"] == "missing":
        return f"{name} is missing; add it to the experiment file or give {name}=VALUE"
    if item["type"] == "value_error":
        said = str(item["ctx"]["error"])
        # A section that stands in several places names its fields without one.
        return f"{name}.{said}" if said.partition(" ")[0] in _fields_at(model, path) and name else said
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"{name} is {item['input']!r}, not a section; write its fields as {name}.field=value"
    message = item["msg"]
    return f"{name} is {item['input']!r}: {message[0].lower()}{message[1:]}"


def _is_union_branch(part: str | int) -> bool:
    """Pydantic adds the tried branch of a union to the location (``literal['auto','all']``, ``tuple[...]``)."""
    return isinstance(part, str) and ("[" in part or part in ("int", "str", "none", "float"))


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    current: Any = model
    for part in path:
        if get_origin(current) is dict:
            current = get_args(current)[1]
            continue
        section = section_of(current)
        field = section.model_fields.get(str(part)) if section else None
        if field is None:
            return []
        current = field.annotation
    found = section_of(current)
    return list(found.model_fields) if found else []


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    candidates = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def check_value(name: str, value: Any) -> None:
    """Raise :class:`UserError` where the experiment has no field of this dotted name, or the field no such value.

    What only other fields' values rule out passes.
    """
    *parents, leaf = name.split(".")
    current: type[Section] | None = Experiment
    for parent in parents:
        field = current.model_fields.get(parent) if current else None
        current = section_of(field.annotation) if field else None
    known = list(current.model_fields) if current else _fields_at(Experiment, [])
    if current is None or leaf not in known:
        raise UserError(f"{name} is not a known key{did_you_mean(leaf if current else parents[0], known)}")
    field = current.model_fields[leaf]
    kind: Any = field.annotation
    if field.metadata:
        kind = Annotated[(kind, *field.metadata)]
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UserError(f"{name} is {value!r}: {message[0].lower()}{message[1:]}") from None


def to_yaml(model: BaseModel) -> str:
    """The resolved configuration as YAML text, every default written out."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def first_difference(old: BaseModel, new: BaseModel, ignore: Iterable[str] = ()) -> tuple[str, Any, Any] | None:
    """The first field (dotted name, old value, new value) in which two configurations differ."""
    ignored = tuple(ignore)

    def walk(a: Any, b: Any, name: str) -> tuple[str, Any, Any] | None:
        if name in ignored:
            return None
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                found = walk(a.get(key), b.get(key), f"{name}.{key}" if name else key)
                if found:
                    return found
            return None
        return None if a == b else (name, a, b)

    return walk(old.model_dump(mode="json"), new.model_dump(mode="json"), "")
