"""The configurations that come with the package, found by name."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.config import Config, ConfigError, load_config
from ammnet_sparse.experiments.tables import config_of, read_table, table_names

DEFAULT_CONFIG = "default"
"""The default configuration of `ammnet train`."""

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), _PACKAGE)
"""The configurations: of an installed package (setup.py copies them there), or of the checkout."""
TABLES = FOLDER / "experiments"
"""The paper's tables."""


def config_names() -> list[str]:
    """Names of the configurations of this installation, without the rows of tables, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def named_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of ``find_config``, or of a row of the paper's tables: ``table6/both``.

    Raises:
        ConfigError: neither exists, or what is in it cannot be used.
    """
    table, _, row = _shipped_name(name).removeprefix("experiments/").partition("/")
    if Path(name).expanduser().is_file() or table not in table_names(TABLES):
        return load_config(find_config(name), overrides)
    found = read_table(TABLES, table).chosen([row])
    return config_of(found[0], base=None, overrides=overrides)


def find_config(name: str | Path) -> Path:
    """The YAML file of a configuration: ``name`` if it is a path, otherwise the shipped file of that name.

    A file in the working folder takes precedence over a shipped one. ``nyu_seg2d``, ``nyu_seg2d.yaml`` and
    ``configs/nyu_seg2d.yaml`` name the same shipped configuration from any folder.

    Raises:
        ConfigError: neither exists; the message lists the shipped names.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = _shipped_name(name)
    names = config_names()
    if shipped in names:
        return FOLDER / f"{shipped}.yaml"
    nearest = difflib.get_close_matches(shipped, names, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else "; check the path"
    found = "a folder" if path.is_dir() else "nothing"
    raise ConfigError(
        f"{name}: cannot read the configuration: expected a YAML file, or the name of a shipped one "
        f"({', '.join(names) or 'this installation has none'}), found {found}{hint}"
    )


def _shipped_name(name: str | Path) -> str:
    """``name`` without the folder ``configs`` and the ending."""
    return Path(name).expanduser().as_posix().removeprefix("configs/").removesuffix(".yaml")
