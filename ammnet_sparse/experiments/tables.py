"""The paper's experiments: a table is a file of ``configs/experiments``, with its rows in the paper's order."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ammnet_sparse.config import Config, ConfigError, merged, read_values, read_yaml, with_overrides

_TABLE_KEYS = {"title", "base", "rows"}
_PAPER_KEYS = ("paper_sc_iou", "paper_ssc_miou", "encoders_of")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of the row in its table.
        title: as the table shows it.
        source: the file and key of the row, for messages.
        base: the configuration that the row changes.
        changes: the keys of the configuration that the row names, nested.
        paper_sc_iou, paper_ssc_miou: the paper's figures in percent; None where it gives none.
        encoders_of: a row of the same table whose trained encoders this one freezes (Figure 2a), or None.
    """

    name: str
    title: str
    source: str
    base: Path
    changes: dict[str, Any]
    paper_sc_iou: float | None = None
    paper_ssc_miou: float | None = None
    encoders_of: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or figure of the paper: its name, its title, and its rows by name in the paper's order."""

    name: str
    title: str
    rows: dict[str, Row]

    def chosen(self, names: list[str]) -> list[Row]:
        """The rows with these names, in the order of the table; all rows if no names are given.

        Raises:
            ConfigError: a name that no row has.
        """
        if unknown := [name for name in names if name not in self.rows]:
            raise ConfigError(
                f"{self.name}: expected rows of {', '.join(self.rows)}, found {', '.join(map(repr, unknown))}"
            )
        return [row for name, row in self.rows.items() if not names or name in names]


def table_names(folder: Path) -> list[str]:
    """The tables of a folder such as ``configs/experiments``, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_table(folder: Path, name: str) -> Table:
    """The table ``name`` of a folder such as ``configs/experiments``.

    Raises:
        ConfigError: no such table, or a file that does not describe one.
    """
    if name not in table_names(folder):
        raise ConfigError(f"table: expected one of {', '.join(table_names(folder)) or 'none'}, found {name!r}")
    path = folder / f"{name}.yaml"
    values = read_yaml(path)
    if set(values) != _TABLE_KEYS or not isinstance(values["rows"], dict):
        raise ConfigError(f"{path}: expected a mapping with title, base and rows, found {', '.join(values) or 'none'}")
    base = folder / str(values["base"])
    rows = {row: _read_row(f"{path}: rows.{row}", row, base, keys) for row, keys in values["rows"].items()}
    for row in rows.values():
        if row.encoders_of is not None and row.encoders_of not in rows:
            raise ConfigError(f"{row.source}.encoders_of: expected a row, found {row.encoders_of!r}")
    return Table(name, str(values["title"]), rows)


def _read_row(source: str, name: str, base: Path, keys: Any) -> Row:
    if not isinstance(keys, dict) or "title" not in keys:
        raise ConfigError(f"{source}: expected title, any of {', '.join(_PAPER_KEYS)}, and keys, found {keys!r}")
    changes = {key: value for key, value in keys.items() if key not in ("title", *_PAPER_KEYS)}
    return Row(name, keys["title"], source, base, changes, **{key: keys[key] for key in _PAPER_KEYS if key in keys})


def config_of(row: Row, *, base: Path | None, overrides: Sequence[str]) -> Config:
    """The configuration of a row over ``base`` (None: the base of its table), with ``key.sub=value`` on top."""
    values = merged(read_values(base or row.base), row.changes)
    return with_overrides(values, overrides, source=row.source)
