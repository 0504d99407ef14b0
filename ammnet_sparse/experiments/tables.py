"""The paper's experiments: a table is a folder of ``configs/experiments``, a row a configuration in it.

``table.yaml`` of a folder gives its title and, in the paper's order, the rows with the paper's figures.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ammnet_sparse.config import Config, ConfigError, load_config
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.yaml_text import YamlProblem, parse_yaml

TABLE_FILE = "table.yaml"
_ROW_KEYS = ("title", "paper_sc_iou", "paper_ssc_miou", "encoders_of")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of the row, and of its file beside ``table.yaml``.
        path: the configuration file.
        title: as the table shows it.
        paper_sc_iou, paper_ssc_miou: the paper's figures in percent; None where it gives none.
        encoders_of: a row of the same table whose trained encoders this one freezes (Figure 2a), or None.
    """

    name: str
    path: Path
    title: str
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
            raise ConfigError(f"{self.name}: expected rows of {', '.join(self.rows)}, found {', '.join(unknown)}")
        return [row for name, row in self.rows.items() if not names or name in names]


def table_names(folder: Path) -> list[str]:
    """The tables of a folder such as ``configs/experiments``, sorted."""
    return sorted(path.parent.name for path in folder.glob(f"*/{TABLE_FILE}"))


def read_table(folder: Path, name: str) -> Table:
    """The table ``name`` of a folder such as ``configs/experiments``.

    Raises:
        ConfigError: no such table, or a file that does not describe one.
    """
    if name not in table_names(folder):
        raise ConfigError(f"table: expected one of {', '.join(table_names(folder)) or 'none'}, found {name!r}")
    path = folder / name / TABLE_FILE
    try:
        values = parse_yaml(read_text(path, what="YAML", raises=ConfigError))
    except YamlProblem as error:
        raise ConfigError(f"{path}: expected YAML, found {error}; correct the file") from error
    if not isinstance(values, dict) or not isinstance(values.get("rows"), dict) or "title" not in values:
        raise ConfigError(f"{path}: expected a mapping with title and rows, found {type(values).__name__}")
    rows = {row: _read_row(path, row, keys) for row, keys in values["rows"].items()}
    for row in rows.values():
        if row.encoders_of is not None and row.encoders_of not in rows:
            raise ConfigError(f"{path}: rows.{row.name}.encoders_of: expected a row, found {row.encoders_of!r}")
    return Table(name, str(values["title"]), rows)


def _read_row(path: Path, name: str, keys: Any) -> Row:
    if not isinstance(keys, dict) or "title" not in keys or not set(keys) <= set(_ROW_KEYS):
        raise ConfigError(f"{path}: rows.{name}: expected title and any of {', '.join(_ROW_KEYS[1:])}, found {keys!r}")
    file = path.with_name(f"{name}.yaml")
    if not file.is_file():
        raise ConfigError(f"{file}: expected the configuration of the row {name} of {path}, found nothing")
    return Row(name, file, **keys)


def config_of(row: Row, *, base: Path | None, overrides: list[str]) -> Config:
    """The configuration of a row over ``base`` (None: the base that its file names), with ``key.sub=value`` on top."""
    return load_config(row.path, overrides, base=base)
