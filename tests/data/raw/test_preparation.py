"""Raw files to a set: exact on the published frame, restartable, verified, and broken files named and skipped."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ammnet_sparse.data.grid import CLASS_NAMES, UNMAPPED
from ammnet_sparse.data.raw.frames import RawPlan
from ammnet_sparse.data.raw.preparation import PreparationReport, prepare_set
from ammnet_sparse.data.sets.check import check_set
from ammnet_sparse.data.sets.conventions import unobserved_of
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.volumes.tsdf import Unobserved, flip_tsdf
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.images import decode_rotated
from tests.data.raw.raw_files import write_raw_frame


def prepare(
    raw: Path, out: Path, *, intrinsics: str = "nyu", flipped: bool = False, split: str = "train", workers: int = 1
) -> PreparationReport:
    plan = RawPlan(raw, out, intrinsics, split, flipped)  # type: ignore[arg-type]
    return prepare_set(plan, workers=workers, progress=False)


def outcomes(report: PreparationReport) -> dict[str, str]:
    return {result.frame_id: result.outcome for result in report.results}


@pytest.fixture(scope="module")
def raw_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for frame_id in ("0001", "0002"):
        write_raw_frame(folder, frame_id)
    return folder


@pytest.fixture
def raw(raw_set: Path, tmp_path: Path) -> Path:
    """Two raw frames that the test may change."""
    return Path(shutil.copytree(raw_set, tmp_path / "raw"))


@pytest.mark.parametrize("flipped", [False, True])
def test_published_frame_comes_out_exactly(shared_data: Path, tmp_path: Path, flipped: bool) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("NYU0003_0000.png", "NYU0003_0000.bin"):
        (raw / name).symlink_to(shared_data / "raw" / name)
    report = prepare(raw, tmp_path / "out", flipped=flipped)
    assert report.is_clean and outcomes(report) == {"0003": "written"}
    reference = np.load(shared_data / "raw" / "NYU0003_reference.npz", allow_pickle=False)
    folder = FrameFolder(tmp_path / "out", dataset="nyucad" if flipped else "nyu")
    assert folder.frame_ids("train") == ["0003"]
    frame = folder.read("0003")
    assert frame.label is not None
    np.testing.assert_array_equal(frame.label.reshape(-1), reference["label"])
    np.testing.assert_array_equal(frame.label_weight.reshape(-1), reference["label_weight"])
    np.testing.assert_array_equal(
        np.where(frame.mapping == UNMAPPED, 307200, frame.mapping).reshape(-1), reference["mapping"]
    )
    expected = flip_tsdf(reference["tsdf"]) if flipped else reference["tsdf"]
    np.testing.assert_allclose(frame.tsdf.reshape(-1), expected, rtol=0, atol=1e-6)


def test_prepared_set_is_read(raw: Path, tmp_path: Path) -> None:
    report = prepare(raw, tmp_path / "out")
    assert report.is_clean and report.listed == {"train": 2}
    assert report.describe() == "2 frames written, 0 replaced, 0 complete before and verified, 0 problems"
    frame = FrameFolder(tmp_path / "out").read("0002")
    assert frame.label is not None
    assert set(np.unique(frame.label)) == {CLASS_NAMES.index(name) for name in ("empty", "floor", "wall", "chair")} | {
        255
    }
    assert (frame.mapping != UNMAPPED).sum() > 500
    np.testing.assert_array_equal(
        frame.label_weight, ((frame.label > 0) & (frame.label < 255)) | (frame.tsdf < np.float32(-0.5))
    )
    with np.load(tmp_path / "out" / "TSDF" / "0002.npz", allow_pickle=False) as archive:
        assert {key: archive[key].dtype for key in archive.files} == {"arr_0": np.float32, "arr_1": np.uint8}


def test_intrinsics_matter(raw: Path, tmp_path: Path) -> None:
    for name in ("nyu", "nyucad"):
        assert prepare(raw, tmp_path / name, intrinsics=name).is_clean
    nyu, cad = (FrameFolder(tmp_path / name).read("0001").mapping for name in ("nyu", "nyucad"))
    hit = nyu != UNMAPPED
    assert (nyu == cad)[hit].mean() < 0.9
    with pytest.raises(DataError, match=f"{tmp_path}/nyu: .*nyucad"):
        prepare(raw, tmp_path / "nyu", intrinsics="nyucad")
    with pytest.raises(DataError, match="'flipped'"):
        prepare(raw, tmp_path / "nyu", flipped=True)


def _truncate(out: Path, raw: Path) -> None:
    path = out / "TSDF" / "0001.npz"
    path.write_bytes(path.read_bytes()[:-200])


def _forge_weight(out: Path, raw: Path) -> None:
    path = out / "TSDF" / "0001.npz"
    with np.load(path) as archive:
        np.savez_compressed(path, arr_0=archive["arr_0"], arr_1=1 - archive["arr_1"])


def _renew_raw(out: Path, raw: Path) -> None:
    later = (out / "TSDF" / "0001.npz").stat().st_mtime + 10
    os.utime(raw / "NYU0001_0000.bin", (later, later))


def _unfinished(out: Path, raw: Path) -> None:
    (out / "Label" / "0001.npz").rename(out / "Label" / "0001.npz.a1_b2c3d.unfinished")


@pytest.mark.parametrize(
    ("damage", "outcome", "note"),
    [
        (_truncate, "rewritten", "TSDF/0001.npz: expected a readable npz file"),
        (_forge_weight, "rewritten", "TSDF/0001.npz: label weight does not follow"),
        (_renew_raw, "rewritten", "Label/0001.npz: older than its raw files"),
        (_unfinished, "written", ""),
    ],
)
def test_restart_repairs(
    raw: Path, tmp_path: Path, damage: Callable[[Path, Path], None], outcome: str, note: str
) -> None:
    out = tmp_path / "out"
    prepare(raw, out)
    expected = FrameFolder(out).read("0001")
    damage(out, raw)
    report = prepare(raw, out)
    assert outcomes(report) == {"0001": outcome, "0002": "complete"}
    assert report.is_clean and note in report.describe()
    found = FrameFolder(out).read("0001")
    np.testing.assert_array_equal(found.tsdf, expected.tsdf)
    np.testing.assert_array_equal(found.label_weight, expected.label_weight)
    assert not list(out.rglob("*.unfinished"))


def test_written_files_are_read_back_and_compared(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps other bits: the frame is not there, and the message says why."""
    save = np.savez_compressed

    def flip_a_voxel(path: Path, **arrays: np.ndarray) -> None:
        if "Mapping" in str(path):
            arrays = {key: values.copy() for key, values in arrays.items()}
            arrays["arr_0"][7] = 3
        save(path, **arrays)

    monkeypatch.setattr(np, "savez_compressed", flip_a_voxel)
    report = prepare(raw, tmp_path / "out")
    assert report.count("failed") == 2 and "arr_0 differs from what was written" in report.failures[0]
    assert not list((tmp_path / "out" / "Mapping").iterdir()) and not (tmp_path / "out" / "train.txt").exists()


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("kind", "spoiled"),
    [
        (".png", lambda content: content[: len(content) // 2]),
        (".png", lambda _: _png(np.full((480, 640), 90, dtype=np.uint8))),
        (".png", lambda _: _png(np.full((960, 1280), 9000, dtype=np.uint16))),
        (".png", lambda _: _png(np.zeros((480, 640), dtype=np.uint16))),
        (".bin", lambda _: b""),
        (".bin", lambda content: content[: len(content) // 2]),
        (".bin", lambda content: content[:12] + np.ones(16, dtype="<f4").tobytes() + content[76:]),  # no pose
        (".bin", lambda content: np.full(3, 50, dtype="<f4").tobytes() + content[12:]),  # a grid elsewhere
    ],
)
def test_broken_files_are_named_and_skipped(
    raw: Path, tmp_path: Path, kind: str, spoiled: Callable[[bytes], bytes]
) -> None:
    path = raw / f"NYU0001_0000{kind}"
    path.write_bytes(spoiled(path.read_bytes()))
    report = prepare(raw, tmp_path / "out")
    assert outcomes(report) == {"0001": "failed", "0002": "written"} and not report.is_clean
    (failure,) = report.failures
    assert f"NYU0001_0000{kind}" in failure and failure in report.describe()
    assert FrameFolder(tmp_path / "out").frame_ids("train") == ["0002"]


def test_files_that_belong_to_no_frame(raw: Path, tmp_path: Path) -> None:
    (raw / "NYU0002_0000.png").unlink()
    (raw / "readme.txt").touch()
    (raw / "NYU5_0000.png").touch()
    (raw / "NYU0002_readme.png").touch()
    (raw / "NYU0007_reference.npz").touch()
    (raw / ".hidden").touch()
    (raw / "NYU0001_reference.npz").touch()  # as people keep results beside the raw files
    report = prepare(raw, tmp_path / "out")
    assert outcomes(report) == {"0001": "written"} and len(report.failures) == 5
    text = report.describe()
    assert "NYU0002_0000.bin: expected its partner .png beside it, found none" in text
    for name in ("readme.txt", "NYU5_0000.png", "NYU0002_readme.png", "NYU0007_reference.npz"):
        assert f"{name}: expected only files" in text
    assert "note: " in text and "NYU0001_reference.npz: not a raw file; ignored" in text


def test_the_list_follows_the_readable_frames(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(raw, out)
    later = tmp_path / "more"
    write_raw_frame(later, "0007")
    assert prepare(later, out).listed == {"train": 3}
    assert prepare(later, out, split="test").listed == {"test": 1}
    (raw / "NYU0002_0000.bin").write_bytes(b"")
    stamp = (out / "TSDF" / "0002.npz").stat().st_mtime + 10
    os.utime(raw / "NYU0002_0000.bin", (stamp, stamp))
    assert prepare(raw, out).listed == {"train": 2}
    assert FrameFolder(out).frame_ids("train") == ["0001", "0007"]
    assert FrameFolder(out).frame_ids("test") == ["0007"]


def test_folders_that_cannot_be_used(raw: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "NYUtrain").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{empty}: "):
        prepare(empty, tmp_path / "out")
    with pytest.raises(DataError, match=f"{tmp_path}/none"):
        prepare(tmp_path / "none", tmp_path / "out")
    taken = tmp_path / "taken"
    (taken / "Label").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{taken}: "):
        prepare(raw, taken)
    with pytest.raises(ValueError, match="workers"):
        prepare(raw, tmp_path / "out", workers=0)


def test_plain_millimeters_are_detected_and_reported_once(raw: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    prepare(raw, expected)
    for path in raw.glob("*.png"):
        Image.fromarray(decode_rotated(np.array(Image.open(path)))).save(path)
    report = prepare(raw, tmp_path / "out")
    assert report.is_clean and report.count("written") == 2
    assert report.describe().count("plain millimeters") == 1
    for name in ("TSDF/0001.npz", "Mapping/0002.npz", "Label/0001.npz"):
        with np.load(tmp_path / "out" / name) as found, np.load(expected / name) as wanted:
            for key in wanted.files:
                np.testing.assert_array_equal(found[key], wanted[key])
    # Told to take them for rotated, there is hardly any depth within the grid.
    plan = RawPlan(raw, tmp_path / "rotated", "nyu", depth_encoding="rotated")
    told = prepare_set(plan, workers=1, progress=False)
    assert "plain millimeters" not in told.describe()
    with np.load(expected / "Mapping/0001.npz") as wanted:
        path = tmp_path / "rotated" / "Mapping" / "0001.npz"
        assert not path.exists() or not np.array_equal(np.load(path)["arr_0"], wanted["arr_0"])


@pytest.mark.parametrize("unobserved", ["free", "surface"])
def test_unobserved_space_of_a_flipped_tsdf(raw: Path, tmp_path: Path, unobserved: Unobserved) -> None:
    plain, out = tmp_path / "plain", tmp_path / "flipped"
    prepare(raw, plain)
    prepare_set(RawPlan(raw, out, "nyu", "train", True, unobserved), workers=1, progress=False)
    with np.load(plain / "TSDF" / "0001.npz") as file:
        is_unobserved = file["arr_0"] == 0
    with np.load(out / "NYUCAD" / "train" / "TSDF_lr" / "NYU0001_0000_voxels.npz") as file:
        flipped = file["tsdf_lr"]
    assert is_unobserved.mean() > 0.1
    assert set(flipped.reshape(-1)[is_unobserved].tolist()) == {1.0 if unobserved == "surface" else np.float32(0.001)}
    assert unobserved_of(flipped) == unobserved
    report = check_set(FrameFolder(out, dataset="nyucad"), progress=False)
    assert f"(--unobserved {unobserved})" in report.describe()
    other = "free" if unobserved == "surface" else "surface"
    with pytest.raises(DataError, match="'unobserved'"):
        prepare_set(RawPlan(raw, out, "nyu", "train", True, other), workers=1, progress=False)
