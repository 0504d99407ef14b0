"""Synthetic rooms: plausible, deterministic, and in the published layout on disk."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numba
import numpy as np
import pytest

from ammnet_sparse.config import DataConfig, SyntheticConfig
from ammnet_sparse.data.grid import GRID_SHAPE, IGNORE_LABEL, NUM_CLASSES, UNMAPPED
from ammnet_sparse.data.synthetic import generate, raycast
from ammnet_sparse.data.synthetic.frame import SyntheticFrame, generate_frame
from ammnet_sparse.data.synthetic.generate import RoomsError, ensure_rooms, generate_rooms
from ammnet_sparse.data.synthetic.raycast import camera_pose, cast_depth, fill_voxels
from ammnet_sparse.data.synthetic.scene import MAP_LABEL_OF, Kind, MapLabel, Material, Place, SceneBuilder, SceneLabel
from ammnet_sparse.data.volumes.camera import NYU_CAMERA
from ammnet_sparse.data.volumes.labels import label_weight_of

GRAY = Material((0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def clean_frames() -> list[SyntheticFrame]:
    return [generate_frame(8332, index, noise="none") for index in range(8)]


@pytest.fixture(scope="module")
def noisy_frames() -> list[SyntheticFrame]:
    return [generate_frame(8332, index, noise="kinect") for index in range(3)]


def occupied(frame: SyntheticFrame) -> np.ndarray:
    return (frame.label > 0) & (frame.label < IGNORE_LABEL)


def test_every_class_occurs_in_a_handful_of_frames(clean_frames: list[SyntheticFrame]) -> None:
    labels = np.unique(np.concatenate([frame.label for frame in clean_frames]))
    assert set(labels) == {*range(NUM_CLASSES), IGNORE_LABEL}
    map_labels = np.unique(np.concatenate([frame.label_map.ravel() for frame in clean_frames]))
    assert set(map_labels) == set(MapLabel)


def test_statistics_resemble_the_published_ones(clean_frames: list[SyntheticFrame]) -> None:
    hits = np.mean([(frame.mapping != UNMAPPED).sum() for frame in clean_frames])
    scored = np.mean([((frame.label_weight > 0) & (frame.label != IGNORE_LABEL)).mean() for frame in clean_frames])
    assert 1500 < hits < 5000
    assert 0.06 < scored < 0.2
    assert 0.04 < np.mean([occupied(frame).mean() for frame in clean_frames]) < 0.12


def test_hit_voxels_show_the_class_of_their_pixel(clean_frames: list[SyntheticFrame]) -> None:
    table = np.array([MAP_LABEL_OF[label] for label in SceneLabel if label != SceneLabel.IGNORE])
    agreeing, total = 0, 0
    for frame in clean_frames:
        at = np.flatnonzero((frame.mapping != UNMAPPED) & occupied(frame))
        seen = frame.true_label_map.reshape(-1)[frame.mapping[at]]
        seen[np.isin(seen, (MapLabel.BOOKS, MapLabel.PICTURE))] = MapLabel.OBJECTS
        agreeing, total = agreeing + (seen == table[frame.label[at]]).sum(), total + at.size
    assert agreeing / total > 0.85


def test_noise_changes_depth_but_not_the_truth(
    clean_frames: list[SyntheticFrame], noisy_frames: list[SyntheticFrame]
) -> None:
    for clean, noisy in zip(clean_frames, noisy_frames, strict=False):
        np.testing.assert_array_equal(clean.label, noisy.label)
        np.testing.assert_array_equal(clean.label_map, noisy.label_map)
        assert (clean.depth > 0).all()
        missing = noisy.depth == 0
        assert 0.01 < missing.mean() < 0.4
        measured = noisy.depth[~missing]
        assert measured.min() >= 0.5 and measured.max() <= 8.0
        error = np.abs(measured - clean.depth[~missing])
        assert 0 < np.median(error / measured**2) < 0.005
        np.testing.assert_array_equal(noisy.label_weight, label_weight_of(noisy.label, noisy.tsdf))


def test_a_frame_depends_on_seed_and_index_only(noisy_frames: list[SyntheticFrame]) -> None:
    again = generate_frame(8332, 2, noise="kinect")
    for name in ("image", "depth", "label_map", "label", "tsdf", "mapping", "label_weight", "pose", "origin"):
        np.testing.assert_array_equal(getattr(again, name), getattr(noisy_frames[2], name), err_msg=name)
    other = generate_frame(8333, 2, noise="kinect")
    assert (other.label != again.label).any()


@pytest.mark.parametrize("kind", list(Kind))
def test_rays_and_voxels_agree_on_turned_shapes(kind: Kind) -> None:
    builder = SceneBuilder()
    item = builder.item(Place(0.1, 3.2, 0.0, 0.5), SceneLabel.OBJECTS)
    item.add(kind, (0, 0, 1.005), (0.8, 0.5, 0.7), material=GRAY)
    scene = builder.build((0.0, 0.0, 2.0))
    pose = camera_pose(1.5, yaw=0.0, pitch=-0.2, roll=0.02)
    depth, shape = cast_depth(scene, pose, camera=NYU_CAMERA)
    origin = np.array([-2.4, 1.0, -0.05])
    fine = fill_voxels(scene, origin)
    v, u = np.nonzero(shape == 0)
    d = depth[v, u].astype(np.float64)
    camera_points = np.stack([(u - NYU_CAMERA.cx) * d / NYU_CAMERA.fx, (v - NYU_CAMERA.cy) * d / NYU_CAMERA.fy, d])
    x, y, height = np.floor((pose[:3, :3] @ camera_points + pose[:3, 3:] - origin[:, None]) / 0.02).astype(int)
    assert v.size > 3000
    assert (fine[x, height, y] == SceneLabel.OBJECTS).mean() > 0.9
    expected = {Kind.BOX: 1.0, Kind.CYLINDER: math.pi / 4, Kind.ELLIPSOID: math.pi / 6}[kind] * 0.82 * 0.52 * 0.72
    assert (fine == SceneLabel.OBJECTS).sum() * 0.02**3 == pytest.approx(expected, rel=0.02)


def rooms(folder: Path, *, frames: int = 3, seed: int = 4, workers: int = 1) -> Path:
    return generate_rooms(
        folder, frames=frames, validation_frames=1, seed=seed, noise="kinect", workers=workers, progress=False
    )


def test_files_follow_the_published_layout(tmp_path: Path) -> None:
    folder = rooms(tmp_path / "rooms")
    assert (folder / "train.txt").read_text().split() == ["0001", "0002", "0003"]
    assert (folder / "val.txt").read_text().split() == ["0002"]
    parameters = json.loads((folder / "rooms.json").read_text())
    assert parameters["seed"] == 4 and parameters["generator_version"] == generate.GENERATOR_VERSION
    expected = generate_frame(4, 1, noise="kinect")

    label = np.load(folder / "Label" / "0002.npz", allow_pickle=False)["arr_0"]
    tsdf = np.load(folder / "TSDF" / "0002.npz", allow_pickle=False)
    mapping = np.load(folder / "Mapping" / "0002.npz", allow_pickle=False)["arr_0"]
    assert {array.shape for array in (label, tsdf["arr_0"], tsdf["arr_1"], mapping)} == {(math.prod(GRID_SHAPE),)}
    assert [array.dtype for array in (label, tsdf["arr_0"], tsdf["arr_1"], mapping)] == [
        np.uint8,
        np.float16,
        np.uint8,
        np.int32,
    ]
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_allclose(tsdf["arr_0"], expected.tsdf, atol=2.5e-4)
    np.testing.assert_array_equal(tsdf["arr_1"], expected.label_weight)
    assert mapping.min() >= 0 and mapping.max() == 307200
    np.testing.assert_array_equal(np.where(mapping == 307200, UNMAPPED, mapping), expected.mapping)
    label_map = iio.imread(folder / "Seg2D" / "0002.png")
    np.testing.assert_array_equal(label_map, expected.label_map)
    assert label_map.dtype == np.uint8 and label_map.max() <= 13
    image = iio.imread(folder / "RGB" / "NYU0002_colors.jpg")
    assert image.shape == (480, 640, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected.image).mean() < 8


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    assert contents(rooms(tmp_path / "one", frames=2)) == contents(rooms(tmp_path / "two", frames=2, workers=2))


def test_an_interrupted_run_leaves_no_set_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def write_until_interrupted(folder: Path, frame_id: str, frame: SyntheticFrame) -> None:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(frame_id)
        original(folder, frame_id, frame)

    original = generate.write_frame
    monkeypatch.setattr(generate, "write_frame", write_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        rooms(tmp_path / "rooms")
    assert not (tmp_path / "rooms").exists()
    for name in ("train.txt", "val.txt"):  # an earlier version wrote them last
        (tmp_path / "rooms.partial" / name).unlink()

    made.clear()
    monkeypatch.setattr(
        generate,
        "write_frame",
        lambda folder, frame_id, frame: (made.append(frame_id), original(folder, frame_id, frame)),
    )
    folder = rooms(tmp_path / "rooms")
    assert made == ["0002", "0003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rooms"]
    assert len(list((folder / "Label").iterdir())) == 3
    assert (folder / "train.txt").read_text().split() == ["0001", "0002", "0003"]
    assert len((folder / "val.txt").read_text().split()) == 1


def test_rooms_are_generated_once_per_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "available_cores", lambda: 1)
    small = SyntheticConfig(frames=2, validation_frames=1, seed=1, noise="none")
    config = DataConfig(synthetic_root=tmp_path, synthetic=small)
    folder = ensure_rooms(config, progress=False)
    before = (folder / "Label" / "0001.npz").stat().st_mtime_ns
    assert ensure_rooms(config, progress=False) == folder
    assert (folder / "Label" / "0001.npz").stat().st_mtime_ns == before
    other = config.model_copy(update={"synthetic": small.model_copy(update={"seed": 2})})
    assert ensure_rooms(other, progress=False) != folder


@pytest.mark.parametrize("name", ["rooms.json", "holiday.txt", "notes.unfinished", "Label/0001.npz"])
def test_an_unfinished_folder_of_somebody_else_is_kept(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "rooms.partial" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"frames": 7}')
    with pytest.raises(RoomsError, match=r"rooms\.partial"):
        rooms(tmp_path / "rooms")
    assert foreign.read_text() == '{"frames": 7}'
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [foreign]


def test_folders_of_other_content_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rooms.json").write_text('{"frames": 7}')
    with pytest.raises(RoomsError, match=str(tmp_path)):
        rooms(tmp_path)
    (tmp_path / "rooms.json").rename(tmp_path / "holiday.txt")
    with pytest.raises(RoomsError, match=r"rooms\.json"):
        rooms(tmp_path)
    with pytest.raises(ValueError, match="validation_frames"):
        generate_rooms(tmp_path / "new", frames=3, validation_frames=3, seed=0, noise="none")


def test_without_a_folder_for_the_cache_functions_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    original = numba.njit

    def njit(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return original(**options)

    monkeypatch.setattr(numba, "njit", njit)
    raycast._warn_of_no_cache.cache_clear()
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        double = raycast._compiled(lambda x: 2 * x)
    assert double(4) == 8


def test_only_generated_rooms_wait_for_numba() -> None:
    """Importing it takes half a second."""
    code = "import sys, ammnet_sparse.cli.predict, ammnet_sparse.cli.train; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
