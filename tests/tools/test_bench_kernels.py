"""The benchmark of the operators: what it writes, on sizes that measure nothing."""

import json
import sys
from pathlib import Path

import pytest

from tests.models.scenes import some_scene

OPERATORS = {
    "project_features",
    "fill_empty",
    "erase_voxels",
    "shuffle_categories",
    "one_hot_sites",
    "modulate",
    "normalize_sites",
}


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench.cases as bench_cases
    import bench.kernels as bench_kernels

    sizes = {"CHANNELS": 4, "MAP_SIZE": (12, 16), "IMAGE_SHAPE": (48, 64), "ROWS_OF_FRAME": 40, "MANY_ROWS": 256}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_cases, name, value)
    monkeypatch.setattr(bench_kernels, "LARGE_COPY", {"cpu": 2**16})
    monkeypatch.setattr(bench_kernels, "load_batch", lambda folder: some_scene(4))
    path = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--seconds", "0", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *arguments])
    bench_kernels.main()

    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert {row["op"] for row in rows} == OPERATORS and {row["impl"] for row in rows} == {"ours", "naive", "copy"}
    backward = {row["op"] for row in rows if row["direction"] == "backward"}
    assert backward == {"project_features", "fill_empty", "modulate", "normalize_sites"}
    assert all(row["median_us"] > 0 and row["bytes"] > 0 and row["peak_bytes"] >= 0 for row in rows)
    assert all(row["speedup_over_naive"] == 1 for row in rows if row["impl"] == "naive")
