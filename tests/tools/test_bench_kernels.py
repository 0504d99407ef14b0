"""The benchmark of the operators: what it writes, on sizes that measure nothing."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.packing import pack_set
from tests.data.frames import random_frame, write_frame, write_list
from tests.models.scenes import some_scene

TOOLS = Path(__file__).resolve().parents[2] / "tools"
OPERATORS = {
    "project_features",
    "fill_empty",
    "erase_voxels",
    "shuffle_categories",
    "one_hot_sites",
    "modulate",
    "normalize_sites",
}
KEYS = {"device", "op", "direction", "size", "dtype", "impl", "median_us", "bytes", "peak_bytes", "speedup_over_naive"}


def test_rows_table_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench.cases as bench_cases
    import bench_kernels

    sizes = {"CHANNELS": 4, "MAP_SIZE": (12, 16), "IMAGE_SHAPE": (48, 64), "ROWS_OF_FRAME": 40, "MANY_ROWS": 256}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_cases, name, value)
    monkeypatch.setattr(bench_kernels, "LARGE_COPY", {"cpu": 2**16})
    monkeypatch.setattr(bench_kernels, "load_frames", lambda folder: some_scene(4))
    files = {"--json": tmp_path / "rows.json", "--plot": tmp_path / "plot.png"}
    arguments = [text for name, path in files.items() for text in (name, str(path))]
    monkeypatch.setattr(
        sys, "argv", ["bench_kernels.py", "--device", "cpu", "--seconds", "0", "--no-compile", *arguments]
    )
    bench_kernels.main()

    written = json.loads(files["--json"].read_text(encoding="utf-8"))
    assert list(written) == ["rows"]
    rows = written["rows"]
    assert all(set(row) == KEYS for row in rows)
    assert {row["op"] for row in rows} == OPERATORS and {row["impl"] for row in rows} == {"ours", "naive", "copy"}
    backward = {row["op"] for row in rows if row["direction"] == "backward"}
    assert backward == {"project_features", "fill_empty", "modulate", "normalize_sites"}
    assert all(row["median_us"] > 0 and row["bytes"] > 0 and row["peak_bytes"] >= 0 for row in rows)
    assert all(row["speedup_over_naive"] == 1 for row in rows if row["impl"] == "naive")
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "spread" in table and "of copy" in table and "a copy of 0 MB moves" in table


def test_frames_of_a_folder_and_of_a_packed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from bench.cases import load_frames

    ids = ["0001", "0002", "0003", "0004"]
    for seed, frame_id in enumerate(ids):
        write_frame(tmp_path, random_frame(seed, frame_id=frame_id, grid_shape=GRID_SHAPE))
    write_list(tmp_path / "train.txt", ids[:3])
    with pytest.raises(ValueError, match="expected 4 training frames, found 3"):
        load_frames(tmp_path)
    write_list(tmp_path / "train.txt", ids)
    pack_set(FrameFolder(tmp_path), tmp_path / "packed", progress=False)
    folder, packed = load_frames(tmp_path), load_frames(tmp_path / "packed")
    assert folder.frame_ids == packed.frame_ids == tuple(ids)
    assert torch.equal(folder.mapping, packed.mapping)
