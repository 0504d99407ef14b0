"""The keys of configurations by their dotted names: what they mean, and their values."""

import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ammnet_sparse.config.sections import Config, is_section


def describe_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Yields (dotted key, type and range in words, default, meaning) of every key, for ``--help``."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        if is_section(field):
            yield from describe_keys(type(field.default), f"{key}.")
        else:
            yield key, _kind(field.annotation) + _range(field), field.default, field.description or ""


def flat_values(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The values of every key by its dotted name."""
    values: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        values |= flat_values(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return values


def flat_plain(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings into one with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_plain(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def given_keys(config: BaseModel, prefix: str = "") -> set[str]:
    """The dotted names of the keys that were set explicitly."""
    keys: set[str] = set()
    for name in config.model_fields_set:
        value = getattr(config, name)
        keys |= given_keys(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}"}
    return keys


def overridden_keys(overrides: Sequence[str]) -> list[str]:
    """The dotted keys of ``key.sub=value`` overrides."""
    return [override.partition("=")[0] for override in overrides]


def text_keys(section: type[BaseModel] = Config, prefix: str = "") -> set[str]:
    """Dotted keys whose values are paths or free text."""
    keys = set()
    for name, field in section.model_fields.items():
        if is_section(field):
            keys |= text_keys(type(field.default), f"{prefix}{name}.")
        elif {field.annotation, *get_args(field.annotation)} & {Path, str}:
            keys.add(f"{prefix}{name}")
    return keys


def _kind(annotation: Any) -> str:
    """A type in the words of YAML: ``int``, ``true or false``, ``a | b``, ``[float, float]``, ``path or empty``."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple and arguments[-1] is ...:
        return f"[{_kind(arguments[0])}, ...]"
    if origin is tuple:
        return f"[{', '.join(_kind(argument) for argument in arguments)}]"
    if origin in (Union, types.UnionType):
        return " or ".join("empty" if argument is type(None) else _kind(argument) for argument in arguments)
    words = {bool: "true or false", str: "text", Path: "path"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _range(field: FieldInfo) -> str:
    symbols = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{symbol} {getattr(bound, name)}"
        for bound in field.metadata
        for name, symbol in symbols.items()
        if getattr(bound, name, None) is not None
    ]
    return f" {', '.join(bounds)}" if bounds else ""
