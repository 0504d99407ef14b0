"""tools/bench_model.py on tiny frames: what it reports, and that both networks make the same step."""

import json
from pathlib import Path

import pytest
import torch
from bench import model, tables, variants
from bench.measurement import Stopwatch, counted_layers
from bench.steps import make_game

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.frame import Frame
from tests.data.frames import random_frame, write_frame, write_list
from tests.training.support import differing, state_of, tiny_batch, tiny_config

GRID = (24, 12, 24)
"""The discriminator leaves more than one cell of it, as batch normalization of a single frame needs."""
CPU = torch.device("cpu")


def make_set(root: Path) -> Path:
    ids = ["0001", "0002", "0003"]
    for seed, frame_id in enumerate(ids):
        write_frame(root, make_frame(seed, frame_id))
    write_list(root / "train.txt", ids)
    write_list(root / "val.txt", ids[1:])
    return root


def make_frame(seed: int, frame_id: str = "") -> Frame:
    return random_frame(seed, frame_id=frame_id, grid_shape=GRID, has_image=True, has_label_map=True)


@pytest.fixture(scope="module")
def set_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


def arguments(root: Path, *more: object) -> list[str]:
    return ["--data", str(root), "--quick", "--width", "8", "--grid", *map(str, GRID), *map(str, more)]


def test_rows_and_what_fits_a_card(set_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    more = ("--json", path, "--card-gb", 6, "--variants", "plain", "recompute_blocks")
    assert model.main(arguments(set_folder, *more)) == 0
    result = json.loads(path.read_text())
    assert (result["frames"], result["batch"], result["width"]) == (2, 1, 8)
    rows = {(row["net"], row["variant"]): row for row in result["rows"]}
    assert list(rows) == [(net, name) for net in ("sparse", "dense") for name in ("plain", "recompute_blocks")]
    for row in rows.values():
        assert row["forward_gmac_per_sample"] > 0 and row["saved_mib_per_sample"] > 0 and row["step_seconds"] > 0
        assert row["skipped_steps"] == 0
        parts = row["part_seconds"]
        assert parts.keys() == {"forward", "backward", "discriminator", "optimizer"}
        assert min(parts.values()) > 0 and sum(parts.values()) <= row["step_seconds"] + 0.001
        assert sum(row["saved_by_group_mib"].values()) == pytest.approx(row["saved_mib_per_sample"], abs=0.1)
        apart = ("label map stem", "discriminator")
        inside = sum(value for group, value in row["gmac_by_group"].items() if group not in apart)
        assert inside == pytest.approx(row["forward_gmac_per_sample"], abs=0.001)
    for net in ("sparse", "dense"):
        assert rows[net, "plain"]["predict_seconds"] > 0 and rows[net, "plain"]["predict_peak_mib"] >= 0
        assert rows[net, "recompute_blocks"]["saved_mib_per_sample"] < rows[net, "plain"]["saved_mib_per_sample"]
    assert "training.recompute=blocks training.batch_size=4" in capsys.readouterr().out


@pytest.mark.parametrize("net", ["sparse", "dense"])
def test_counts_are_those_of_the_whole_network(net: str) -> None:
    config = tiny_config(model={"width": 16, "grid_shape": list(GRID)})
    batches = [Batch.from_frame(make_frame(seed)) for seed in (1, 2)]
    pair = variants.build_pair(net, config.model)
    with torch.no_grad(), counted_layers(pair.modules) as counts:
        for batch in batches:
            variants._score(pair, batch, pair.generator(batch))
    found = variants.count(net, config, batches)
    expected = sum(counts.multiplications(pair.modules).values()) / 2
    assert sum(found.values()) == pytest.approx(expected, rel=1e-12)
    assert "inputs" not in found, "a layer of no group"


def test_the_dense_step_is_that_of_the_sparse_network_with_every_voxel_a_site() -> None:
    config, batch = tiny_config(model={"sites": "dense"}), tiny_batch((1, 2))
    torch.manual_seed(0)
    pairs = [variants.build_pair(net, config.model) for net in ("sparse", "dense")]
    for pair in pairs:
        pair.modules.load_state_dict(pairs[0].modules.state_dict())
        pair.modules.double()
    before = state_of(pairs[0].modules)
    losses = []
    for pair in pairs:
        game = make_game(pair, config, Stopwatch(CPU))
        report = game.step([batch], seed=3)
        losses.append(report if isinstance(report, dict) else report.as_floats())
    for name, value in losses[1].items():
        assert float(value) == pytest.approx(losses[0][name], rel=1e-8), name
    after = [state_of(pair.modules) for pair in pairs]
    assert len(differing(before, after[0])) > 0.9 * len(before)
    for name, value in after[0].items():
        torch.testing.assert_close(after[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_largest_batch_and_its_keys() -> None:
    line = tables.memory_line([(1, 300.0), (2, 500.0), (4, 900.0)], static_mib=50.0)
    assert (line.fixed, line.per_sample) == (pytest.approx(100), pytest.approx(200))
    assert line.largest_batch((tables.RESERVED_MIB + 100 + 3 * 200 + 1) / 1024) == 3
    assert line.largest_batch(0.5) == 0
    one = tables.memory_line([(2, 450.0)], static_mib=50.0)
    assert (one.fixed, one.per_sample, one.at(4)) == (50, 200, 850)
    row = {"net": "sparse", "variant": "recompute_full", "dtype": "float16"}
    assert tables.settings(row, width=64, wanted=4, largest=3) == [
        "model.width=64",
        "model.image_encoder=seg2d",
        "training.mixed_precision=true",
        "training.recompute=full",
        "training.batch_size=2",
        "training.accumulate=2",
    ]
    answer = tables.card_answer([row], [line], card_gb=1, width=64, wanted=4)
    assert "no  needs" in answer and "training.batch_size=1 training.accumulate=4" in answer
