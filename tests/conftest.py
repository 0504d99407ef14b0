"""What all tests share: few threads, where the real frames are, and what runs of training need."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

# Small tensors gain nothing from threads, and on a busy machine threads wait for each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets files with slow tests begin, so that no process ends with one; skips ``cuda`` where there is no device."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and there is none")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real frames beside the repository: ``nyu``, ``raw`` and ``rgbd``. Skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real frames, and {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def nyu_folder(shared_data: Path) -> Path:
    """The NYU training frames in the published layout. Skips where they are absent."""
    folder = shared_data / "nyu"
    if not (folder / "train.txt").is_file():
        pytest.skip(f"needs the NYU frames, and {folder} holds no train.txt")
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny set of four training frames and two for validation; not to be changed."""
    from tests.training.support import tiny_set

    return tiny_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def quick_pictures() -> Iterator[None]:
    """The pictures of a training take no time."""
    from ammnet_sparse.training import records

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "picture_of", lambda network, batch: np.zeros((4, 4, 3), dtype=np.uint8))
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small network of depth alone."""
    from tests.completion import small_weights

    return small_weights(tmp_path_factory.mktemp("weights"))
