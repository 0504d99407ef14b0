"""The configurations that come with the package, found by name."""

import difflib
from pathlib import Path

from ammnet_sparse.config import ConfigError
from ammnet_sparse.experiments.tables import TABLE_FILE

DEFAULT_CONFIG = "default"
"""The default configuration of `ammnet train`."""

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Folders of configurations: in an installed package (setup.py copies them there), and in a checkout."""


def config_names() -> list[str]:
    """Names of the configurations of this installation, those in folders as ``folder/name``, sorted."""
    files = ((folder, path) for folder in FOLDERS for path in folder.rglob("*.yaml") if path.name != TABLE_FILE)
    return sorted({path.relative_to(folder).with_suffix("").as_posix() for folder, path in files})


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
    relative = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    shipped = relative.with_suffix("").as_posix() if relative.suffix == ".yaml" else relative.as_posix()
    names = config_names()
    if shipped in names:
        return next(file for folder in FOLDERS if (file := folder / f"{shipped}.yaml").is_file())
    nearest = difflib.get_close_matches(shipped, names, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else "; check the path"
    found = "a folder" if path.is_dir() else "nothing"
    raise ConfigError(
        f"{name}: cannot read the configuration: expected a YAML file, or the name of a shipped one "
        f"({', '.join(name for name in names if '/' not in name) or 'this installation has none'}), found {found}{hint}"
    )
