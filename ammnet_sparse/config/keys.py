"""The keys of configurations by their dotted names: meaning, values, and what a change of them does."""

import dataclasses
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ammnet_sparse.config.sections import Config, OnlyIf, Resume, is_section


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: with dots.
        kind: type and range in words.
        default: of the code.
        meaning: for people.
        is_text: the value is a path or free text.
        resume: whether a resumed run may change it.
        only_if: the condition under which it has an effect; None: always.
    """

    name: str
    kind: str
    default: Any
    meaning: str
    is_text: bool
    resume: Resume
    only_if: OnlyIf | None


def describe_keys(
    section: type[BaseModel] = Config,
    prefix: str = "",
    *,
    resume: Resume = Resume.ASKED,
    only_if: OnlyIf | None = None,
) -> Iterator[Key]:
    """Every key of a section; ``resume`` and ``only_if`` are the section's own marks."""
    for name, field in section.model_fields.items():
        marks = [resume, only_if, *field.metadata]
        of_key: dict[str, Any] = {
            "resume": next(mark for mark in reversed(marks) if isinstance(mark, Resume)),
            "only_if": next((mark for mark in reversed(marks) if isinstance(mark, OnlyIf)), None),
        }
        if is_section(field):
            yield from describe_keys(type(field.default), f"{prefix}{name}.", **of_key)
        else:
            yield Key(
                name=f"{prefix}{name}",
                kind=_kind(field.annotation) + _range(field),
                default=field.default,
                meaning=field.description or "",
                is_text=get_origin(field.annotation) is not tuple
                and bool({field.annotation, *get_args(field.annotation)} & {Path, str}),
                **of_key,
            )


def keys_without_effect(config: Config, names: Iterable[str]) -> dict[str, str]:
    """The keys among ``names`` that have another value than their default, but no effect; each with the reason."""
    values, defaults = flat_values(config), flat_values(Config())
    only_if = {key.name: key.only_if for key in describe_keys()}
    problems = {
        name: mark.problem(config)
        for name in names
        if (mark := only_if.get(name)) is not None and values[name] != defaults[name]
    }
    return {name: problem for name, problem in problems.items() if problem is not None}


def changed_keys(before: Config, now: Config) -> list[Key]:
    """The keys that decide what is trained, and how, in which two configurations differ.

    Paths that lead to the same place are the same.
    """

    def resolved(config: Config) -> dict[str, Any]:
        values = flat_values(config)
        return {
            name: Path(os.path.realpath(value)) if isinstance(value, Path) else value for name, value in values.items()
        }

    old, new = resolved(before), resolved(now)
    return [key for key in describe_keys() if old[key.name] != new[key.name] and key.resume is not Resume.FREE]


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


def _kind(annotation: Any) -> str:
    """A type in the words of YAML: ``int``, ``true or false``, ``a | b``, ``[float, float]``, ``path or empty``."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " | ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in arguments)
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
