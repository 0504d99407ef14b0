"""Reading configurations: YAML files that may inherit, and ``key.sub=value`` overrides."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ammnet_sparse.config.keys import describe_keys
from ammnet_sparse.config.sections import Config
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import FileError
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.files.yaml_text import YamlProblem, parse_yaml, short

_MOST_BYTES = 2**20
_MOST_PROBLEMS = 20
_DEEPEST_KEY = 8
_LONGEST_INHERITANCE = 8
"""Largest length of a chain of files that inherit from each other."""


class ConfigError(FileError):
    """A configuration that cannot be used; the message names the file and the key."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file (none: the defaults of the code) and applies ``key.sub=value`` overrides in order.

    A file may inherit from another one, as ``base: ../other.yaml``, relative to itself: its own keys
    override those of that file, one by one.

    Raises:
        ConfigError: an unreadable file, an unknown or repeated key, or a value of the wrong type or range.
    """
    values = {} if path is None else read_values(Path(path))
    return with_overrides(values, overrides, source="defaults" if path is None else str(path))


def with_overrides(values: dict[str, Any], overrides: Sequence[str], *, source: str) -> Config:
    """A checked configuration from nested dicts (modified in place) and ``key.sub=value`` overrides in order.

    ``source`` names where the dicts come from in errors.
    """
    for override in overrides:
        _apply_override(values, override)
    if overrides:
        source += " with overrides " + " ".join(overrides)
    return config_from_dict(values, source=source)


def config_from_dict(values: dict[str, Any], *, source: str) -> Config:
    """A checked configuration from nested dicts; ``source`` names where they come from in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, source)) from error


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration as YAML that ``load_config`` reads back unchanged."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def read_values(path: Path, *, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file merged over those that it inherits, not checked yet; ``heirs`` inherit from it.

    Raises:
        ConfigError: an unreadable file, a repeated key, or a ``base`` that cannot be used.
    """
    place = Path(os.path.realpath(path))
    if place in heirs or len(heirs) >= _LONGEST_INHERITANCE:
        names = " -> ".join(str(file) for file in (*heirs, path))
        raise ConfigError(
            f"{heirs[0]}: base: expected at most {_LONGEST_INHERITANCE} files that inherit in a row without a circle, "
            f"found {names}"
        )
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected the name of a YAML file, found {short(base)}")
    return merged(read_values(path.parent / base, heirs=(*heirs, place)), values)


def merged(inherited: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A new mapping: nested values of ``own`` over those of ``inherited``."""
    result = dict(inherited)
    for key, value in own.items():
        before = result.get(key)
        result[key] = merged(before if isinstance(before, dict) else {}, value) if isinstance(value, dict) else value
    return result


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The values of a YAML file with a mapping, empty for an empty file.

    Raises:
        ConfigError: an unreadable file, a repeated key, or no mapping.
    """
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no such file"
        raise ConfigError(f"{path}: cannot read the configuration ({found}); check the path")
    text = read_text(path, what="YAML", most=_MOST_BYTES, advice="check the path", raises=ConfigError)
    try:
        values = parse_yaml(text)
    except YamlProblem as error:
        raise ConfigError(f"{path}: expected YAML, found {error}; correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    shown = _cut(override)
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {shown!r}: expected key.sub=value, for example training.epochs=5")
    *sections, last = key.split(".")
    if len(sections) > _DEEPEST_KEY:
        raise ConfigError(f"override {shown!r}: expected a key such as training.epochs, found {len(sections)} dots")
    value = _override_value(key, text, shown)
    target = values
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise ConfigError(f"override {shown!r}: {section!r} is a value, not a section")
    target[last] = value


def _override_value(key: str, text: str, shown: str) -> Any:
    """A value from the command line. Names of files and lists are taken literally, not parsed as YAML."""
    is_text = any(known.is_text for known in describe_keys() if known.name == key)
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if is_text and not is_quoted:
        return None if text in ("", "null", "~") else text
    if "#" in text and not is_quoted:
        raise ConfigError(f"override {shown!r}: expected a value, found '#' in it, which does not start a comment here")
    try:
        value = parse_yaml(text) if text else None
    except YamlProblem as error:
        raise ConfigError(f"override {shown!r}: {_cut(text)!r} is not a YAML value: {error}") from error
    if isinstance(value, dict):
        raise ConfigError(f"override {shown!r}: expected a value, found a mapping; set each key by itself")
    return value


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems[:_MOST_PROBLEMS]:
        key = _cut(".".join(str(part) for part in problem["loc"]))
        message = _cut(problem["msg"].removeprefix("Value error, "), 400)
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown key{_nearest(key)}")
        elif isinstance(problem["input"], dict | BaseModel):  # a check of a whole section names the key first
            is_ours = problem["type"] == "value_error"
            lines.append(f"  {f'{key}.{message}'.lstrip('.')}" if is_ours else f"  {key}: {message}")
        else:
            lines.append(f"  {key}: {message} (found {short(problem['input'])})")
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - _MOST_PROBLEMS} more")
    return f"{_cut(source, 500)}:\n" + "\n".join(lines)


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _nearest(key: str) -> str:
    known = [known_key.name for known_key in describe_keys()]
    # Comparing only the last part finds keys in the wrong section.
    same_name = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    matches = same_name or difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
