"""The paper's experiments: every row is a configuration that differs as it says, and builds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.cli.configs import TABLES as FOLDER
from ammnet_sparse.cli.configs import find_config, named_config
from ammnet_sparse.config import ConfigError, flat_values, load_config
from ammnet_sparse.experiments.tables import Row, config_of, read_table, table_names
from ammnet_sparse.models.ammnet import AMMNet
from tests.training.support import TINY_KEYS

SEG2D = find_config("nyu_seg2d")
TABLES = [read_table(FOLDER, name) for name in table_names(FOLDER)]
ROWS = [pytest.param(row, id=f"{table.name}-{name}") for table in TABLES for name, row in table.rows.items()]


def own_keys(row: Row) -> dict[str, Any]:
    """The keys that a row changes, by dotted names."""
    return {f"{section}.{key}": value for section, keys in row.changes.items() for key, value in keys.items()}


def as_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_the_tables_of_the_paper_are_there() -> None:
    expected = {"figure2a", "figure2b", "figure5"} | {f"table{name}" for name in (*range(1, 7), "_s1", "_s2", "_s3")}
    assert {table.name for table in TABLES} == expected
    rows = read_table(FOLDER, "table3").rows
    assert {name: (row.paper_sc_iou, row.paper_ssc_miou) for name, row in rows.items()} == {
        "baseline": (71.6, 46.1),
        "modulation": (74.0, 47.4),
        "adversarial": (74.4, 47.7),
        "both": (75.6, 48.5),
    }


@pytest.mark.parametrize("row", ROWS)
def test_a_row_differs_from_its_base_in_its_own_keys_alone(row: Row) -> None:
    for base in (None, SEG2D):
        default = load_config(base or row.base)
        before, now = flat_values(default), flat_values(config_of(row, base=base, overrides=[]))
        keys = own_keys(row)
        changed = {key for key, value in now.items() if before[key] != value}
        assert changed <= set(keys)
        # A row may name what its base has already: the encoder, or the loss weight of Figure 5.
        assert {key: as_yaml(now[key]) for key in keys} == keys


@pytest.mark.parametrize("row", ROWS)
def test_a_row_builds_its_network(row: Row) -> None:
    config = config_of(row, base=SEG2D, overrides=TINY_KEYS)
    with torch.device("meta"):
        names = AMMNet(config.model).state_dict()
    keys = own_keys(row)
    for level in (1, 2, 3):
        has_weights = config.model.fusion != "add" and keys.get(f"model.modulation{level}", True)
        is_possible = config.model.inputs == "both" or (config.model.inputs == "tsdf" and level > 1)
        is_there = any(name.startswith(f"decoder.modulation{level}.") for name in names)
        assert is_there == (has_weights and is_possible)


def test_files_inherit(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text("model:\n  width: 16\n  fusion: add\ntraining:\n  epochs: 3\n", encoding="utf-8")
    (tmp_path / "near.yaml").write_text("base: far.yaml\nmodel:\n  width: 32\n", encoding="utf-8")
    near = load_config(tmp_path / "near.yaml", ["training.batch_size=1"])
    assert (near.model.width, near.model.fusion, near.training.epochs) == (32, "add", 3)
    assert near.training.batch_size == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: 3\n", "one.yaml: base"),
        ("base: nowhere.yaml\n", "nowhere.yaml"),
        ("base: one.yaml\n", "one.yaml -> .*one.yaml"),
    ],
)
def test_a_base_that_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "one.yaml")


def test_tables_and_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="table9"):
        read_table(FOLDER, "table9")
    with pytest.raises(ConfigError, match="table3"):
        read_table(FOLDER, "table3").chosen(["m4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: mine\nrows: {a: {title: A}}\n", "mine.yaml"),
        ("{title: mine, base: b.yaml, rows: {a: {modle: {}}}}", r"mine.yaml: rows\.a: .*modle"),
        ("{title: mine, base: b.yaml, rows: {a: {title: A, encoders_of: b}}}", r"mine.yaml: rows\.a\.encoders_of"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_table(tmp_path, "mine")


def test_a_row_has_a_name_and_errors_say_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = read_table(FOLDER, "table6").rows["semantic"]
    expected = config_of(row, base=None, overrides=["model.width=8"])
    assert not expected.adversarial.geometric_fakes and row.changes["model"].keys() == {
        f"modulation{i}" for i in (1, 2, 3)
    }
    for name in ("table6/semantic", "experiments/table6/semantic", "configs/experiments/table6/semantic.yaml"):
        assert named_config(name, ["model.width=8"]) == expected
    with pytest.raises(ConfigError, match="table6.yaml"):
        named_config("table6/semantic", ["model.widht=8"])
    with pytest.raises(ConfigError, match="table6"):
        named_config("table6/m4")
