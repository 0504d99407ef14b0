"""What is written over an older file: a full disk leaves that file as it was."""

import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.pictures.history import History
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.run_comparison import plot_scores
from tests.data.frames import random_frame

Write = Callable[[CompletedScene, Path], object]


def plot(scene: CompletedScene, folder: Path) -> None:
    plot_scores({"run": History([], [{"epoch": 1, "step": 1}])}, folder / "plot.svg")


@pytest.mark.parametrize(
    "write",
    [
        CompletedScene.write_volume,
        CompletedScene.write_picture,
        CompletedScene.write_ply,
        lambda scene, folder: scene.write_page(folder / "page.html"),
        plot,
    ],
)
def test_a_full_disk_keeps_the_older_file(tmp_path: Path, write: Write) -> None:
    frame = random_frame(1, frame_id="one")
    write(CompletedScene(frame, np.random.default_rng(0).integers(0, 12, frame.tsdf.shape, dtype=np.uint8)), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    try:
        with pytest.raises(OSError, match="File too large"):
            write(CompletedScene(frame, np.ones(frame.tsdf.shape, dtype=np.uint8)), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
