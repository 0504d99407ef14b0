"""Features of images kept by frame: float16, with the voxels as the data set inside has them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import EpochDataset, FrameDataset, build_loader
from ammnet_sparse.data.device_dataset import DeviceDataset
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.image_folder import FramesWithImages
from ammnet_sparse.data.stage_dataset import StageDataset
from ammnet_sparse.files.errors import DataError
from tests.data.frames import GRID, write_set

CPU = torch.device("cpu")
IDS = ["0001", "0002", "0005"]


def extract(image: Tensor) -> Sequence[Tensor]:
    """Four stages that tell which image they are of."""
    return [F.avg_pool2d(image[:, : index + 1], 2 ** (index + 2)) for index in range(3)] + [
        image.mean((2, 3))[..., None, None]
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    write_set(root, IDS, has_image=True)
    return root


@pytest.mark.parametrize("on_device", [False, True])
def test_batches_have_the_features_of_their_frames(root: Path, on_device: bool) -> None:
    plain, source = FrameFolder(root, grid_shape=GRID, read_image=False), FrameFolder(root, grid_shape=GRID)
    inside: EpochDataset = FrameDataset(plain, IDS, augment_3d=True, seed=3)
    if on_device:
        inside = DeviceDataset(plain, IDS, device=CPU, augment_3d=True, seed=3)
    dataset = StageDataset(inside, source, extract=extract, device=CPU)
    assert dataset.num_bytes == 2 * sum(stage.numel() for stage in dataset[0].image_stages or ()) * len(IDS)
    for epoch in range(2):
        loader = build_loader(dataset, batch_size=2, shuffle_seed=1, epoch=epoch, workers=0, drop_last=False)
        names = []
        for batch in loader:
            assert batch.image is None and batch.image_stages is not None and batch.image_shape == (480, 640)
            names += batch.frame_ids
            whole = _images(source, batch.frame_ids)
            for found, expected in zip(batch.image_stages, extract(whole), strict=True):
                assert found.dtype == torch.float16
                torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)
            index = IDS.index(batch.frame_ids[0])
            assert batch.mapping[0].equal(inside[index].mapping[0]) and batch.tsdf[0].equal(inside[index].tsdf[0])
        assert sorted(names) == IDS
    moved = batch.to("cpu")
    assert moved.image_stages is not None and len(moved.image_stages) == 4


def test_features_beyond_float16_are_refused(root: Path) -> None:
    plain, source = FrameFolder(root, grid_shape=GRID, read_image=False), FrameFolder(root, grid_shape=GRID)
    with pytest.raises(ValueError, match="frame 0001"):
        StageDataset(FrameDataset(plain, IDS), source, extract=lambda image: [image[..., :2, :2] * 1e6] * 4, device=CPU)


def test_images_of_a_folder_join_a_set_without(root: Path, tmp_path: Path) -> None:
    plain, whole = FrameFolder(root, grid_shape=GRID, read_image=False), FrameFolder(root, grid_shape=GRID)
    joined = FramesWithImages(plain, root / "RGB")
    assert joined.reads_image and not plain.reads_image and joined.frame_ids("train") == IDS
    for read in (lambda frames: frames.read("0002"), lambda frames: frames.read_compact("0002")):
        assert (read(joined).image == read(whole).image).all()
    frame, problems = joined.read_with_problems("0002")
    assert frame is not None and not problems and (frame.image == whole.read("0002").image).all()
    assert joined.missing_files("0002") == [] and joined.missing_files("0042")
    with pytest.raises(DataError, match=r"data\.images .*nowhere"):
        FramesWithImages(plain, tmp_path / "nowhere")
    empty = FramesWithImages(plain, tmp_path)
    assert [path.name for path in empty.missing_files("0002")] == ["NYU0002_colors.jpg"]
    assert empty.read_with_problems("0002")[0] is None
    with pytest.raises(DataError, match="NYU0002_colors.jpg"):
        empty.read("0002")


def _images(source: FrameFolder, ids: Sequence[str]) -> Tensor:
    images = [Batch.from_frame(source.read(frame_id)).image for frame_id in ids]
    return torch.cat([image for image in images if image is not None])
