"""Settings of a training run from a file: YAML, of which JSON is a part, or a preset by name.

The keys are the names of the fields of the command's dataclass, those of its parts in sections:

    network: vgg16
    learning_rate: 0.001
    search:
      mode: fast

The config.json of a finished run is read as well: its section ``training`` holds such keys, and
what it says about how the run came about is left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

# Keys of config.json that are no settings; runs alone write them.
FACTS = ("command", "versions", "proposals_made_with")
# A few lines of YAML may stand for a list of any size.
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother = 2, 200, 200


def presets() -> dict[str, str]:
    """Name -> text of the presets in the package."""
    folder = resources.files("fastrcnn_engine") / "presets"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".yaml")
    }


def read_settings(source: str, fields_of: type) -> tuple[dict[str, Any], bool]:
    """The settings in a preset or a file, as keyword arguments of the dataclass ``fields_of``, and
    whether they are those of a run, resolved.

    Paths in a file are relative to the working directory, as they are on the command line.

    Raises:
        ValueError: neither a preset nor a file, no YAML, a key that is unknown (the nearest one is
            named) or there twice, or a value of another type.
    """
    known = presets()
    path = Path(source)
    if source in known:
        text = known[source]
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"config: {path} is not a text file: {error}") from None
    else:
        raise ValueError(
            f"config is {source!r}: no such file, and the presets are {', '.join(known)}"
        )
    try:
        content = yaml.load(text, Loader=_UniqueKeys)
    except Exception as error:  # what is tagged as a date, a number, ... may be none
        raise ValueError(f"config: {source} is not readable as YAML: {error}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"config: {source} must hold keys and values, got {_SHOWN.repr(content)}")
    of_a_run = any(key in content for key in FACTS)
    content = {key: value for key, value in content.items() if key not in FACTS}
    lifted = content.pop("training", {})
    if not isinstance(lifted, dict) or lifted.keys() & content.keys():
        raise ValueError(f"config: {source}: training must be a section with keys of its own")
    settings = content | lifted
    if settings.get("config") is not None and not of_a_run:
        raise ValueError(f"config: {source} names another, which only --config can; leave it out")
    return _fields(settings, fields_of, f"config: {source}"), of_a_run


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or a map, which the constructor refuses
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _fields(content: Mapping[Any, Any], fields_of: type, where: str) -> dict[str, Any]:
    """The values of a section as keyword arguments of a dataclass; see read_settings."""
    kinds = typing.get_type_hints(fields_of)
    names = {field.name for field in dataclasses.fields(fields_of)}
    found = {}
    for key, value in content.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
        kind = kinds[key]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {key} must be a section, got {_SHOWN.repr(value)}")
            found[key] = kind(**_fields(value, kind, f"{where}: {key}"))
            continue
        good, found[key] = _converted(value, kind)
        if not good:
            shown = _SHOWN.repr(value)
            raise ValueError(f"{where}: {key} is {shown}; it must be {_described(kind)}")
    return found


def _converted(value: Any, kind: Any) -> tuple[bool, Any]:
    """(whether a value of the file fits the type, the value as that type)."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for one in inner:
            good, result = _converted(value, one)
            if good:
                return True, result
        return False, None
    if origin is typing.Literal:
        return value in inner, value
    if origin is tuple:
        parts = [_converted(part, inner[0]) for part in value] if isinstance(value, list) else []
        good = isinstance(value, list) and all(good for good, _ in parts)
        return good, tuple(part for _, part in parts)
    if kind is Path:
        return isinstance(value, str), Path(value) if isinstance(value, str) else None
    if kind is float:
        try:  # 1e-3 without a point is a text to YAML
            return not isinstance(value, bool), float(value)
        except (TypeError, ValueError, OverflowError):
            return False, None
    return type(value) is kind, value


def _described(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(one) for one in inner)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a list (each of them {_described(inner[0])})"
    names = {Path: "a path", str: "a text (in quotes, if it looks like something else)",
             int: "a whole number", float: "a number", bool: "true or false",
             type(None): "null"}  # fmt: skip
    return names[kind]
