"""Reads damaged files of every kind: python -m tests.fuzz --count 20000

A valid file of each kind is changed at random, by a seed, and read. A reader may accept it or raise the project's own
error (``FileError``); anything else is a raw error, and so is a reading that takes long or much memory. Both are
counted; the exit code is 1 unless there are none.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import pickle
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from ammnet_sparse.camera.files.intrinsics import read_intrinsics
from ammnet_sparse.camera.files.poses import read_trajectory
from ammnet_sparse.camera.files.sequences.layouts import open_sequence
from ammnet_sparse.camera.geometry.surface import Surface
from ammnet_sparse.camera.labeled_mesh import read_labeled_mesh
from ammnet_sparse.config import Config, ModelConfig, load_config
from ammnet_sparse.data.raw.frames import read_depth_values, read_raw_labels
from ammnet_sparse.data.set_info import NYU
from ammnet_sparse.data.sets.files import read_color_image, read_label_map
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.ids import read_id_list
from ammnet_sparse.data.sets.packed import PackedFrames
from ammnet_sparse.data.sets.packing import pack_set
from ammnet_sparse.data.volumes.labels import FINE_GRID_SHAPE
from ammnet_sparse.files.arrays import read_array
from ammnet_sparse.files.errors import FileError
from ammnet_sparse.files.images import guess_depth_encoding, read_image
from ammnet_sparse.files.pickles import read_pickled_dict
from ammnet_sparse.models.weights.backbones import read_weights_file
from ammnet_sparse.models.weights.files import read_weights, save_weights
from ammnet_sparse.pictures.history import read_history, table_html
from ammnet_sparse.scene_map.estimate import Reading
from ammnet_sparse.scene_map.files import SavedMap, read_map, write_map
from ammnet_sparse.scene_map.frames import MapFrame
from ammnet_sparse.scene_map.fused import FusedFrames
from ammnet_sparse.scene_map.room import GivenPose, Room
from tests.camera.sequences import small_frames, write_sequence
from tests.data.frames import GRID, random_frame, write_frame, write_list

SLOWEST_SECONDS = 5.0
MOST_GROWTH_BYTES = 2**30
"""Of the largest resident set while all files are read; libraries and caches come before."""

_MESH = b"""ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
property uchar label
element face 2
property list uchar int vertex_indices
end_header
0 0 0 1
0.5 0 0 1
0.5 0.5 0 2
0 0.5 0 2
3 0 1 2
3 0 2 3
"""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_WORDS = (b"NaN", b"-inf", b"1e999", b"99999999999999999999", b"-1", b"\x00", b"[" * 200, b"{", b'"', b"\xff\xfe", b"#")
_LONG_WORDS = (
    b"9" * 400,
    b" " * 200_000,
    b"1:" * 50_000,
    b"[" * 100_000,
    b"- " * 5_000,
    b"<a>" * 5_000,
    b"a." * 20_000,
)
"""What calibrations and trajectories are tried with, too: readers have taken quadratic time, or raised raw errors."""
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
_VOXELS = int(np.prod(GRID))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: its path, its valid content, and its reader."""

    name: str
    path: Path
    content: bytes
    read: Callable[[Path], Any]


@dataclasses.dataclass
class Findings:
    """The results: how many damaged files were accepted and refused by kind, and the faults of readers."""

    accepted: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: list[str] = dataclasses.field(default_factory=list)


def run(count: int, *, seed: int = 0, folder: Path, only: str = "") -> Findings:
    """Reads ``count`` damaged files, kinds in turn; the same seed gives the same files."""
    kinds = [kind for kind in make_kinds(folder) if only in kind.name]
    findings = Findings()
    warnings.simplefilter("ignore")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        kind = kinds[number % len(kinds)]
        rng = np.random.default_rng([seed, number])
        kind.path.write_bytes(damaged(kind, kinds, rng))
        began = time.process_time()
        try:
            kind.read(kind.path)
            findings.accepted[kind.name] += 1
        except FileError:
            findings.refused[kind.name] += 1
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:100]} ({Path(place.filename).name}:{place.lineno})"
            findings.faults.append(f"file {number}, {kind.name}: {what}")
        if time.process_time() - began > SLOWEST_SECONDS:
            findings.faults.append(f"file {number}, {kind.name}: took {time.process_time() - began:.1f} s")
        kind.path.write_bytes(kind.content)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MOST_GROWTH_BYTES:
        findings.faults.append(f"the resident set grew by {grown / 2**20:,.0f} MiB")
    return findings


def damaged(kind: Kind, kinds: Sequence[Kind], rng: np.random.Generator) -> bytes:
    """The content of a kind, changed at random: cut, flipped, overwritten, joined with another, or replaced."""
    content = kind.content
    if kind.name.startswith("npz") and rng.random() < 0.5:
        return _odd_archive(rng, content)
    if kind.name.startswith(_CAMERA) and rng.random() < 0.3:
        place = int(rng.integers(len(content) + 1))
        return content[:place] + _LONG_WORDS[int(rng.integers(len(_LONG_WORDS)))] + content[place:]
    for _ in range(int(rng.integers(1, 4))):
        content = _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](content, rng, kinds)
    return content


def make_kinds(folder: Path) -> list[Kind]:
    """Valid files of every kind, in a folder of their own."""
    root = folder / "set"
    frame = random_frame(1, has_image=True, has_label_map=True)
    write_frame(root, frame)
    write_list(root / "train.txt", ["0001"])
    frames = FrameFolder(root, grid_shape=GRID)

    def read_set(_: Path) -> None:
        found, problems = frames.read_with_problems("0001")
        if found is None:
            raise problems[0]

    kinds = [
        Kind(f"npz {name}", path, path.read_bytes(), read_set)
        for name in ("Label", "TSDF", "Mapping")
        for path in [root / name / "0001.npz"]
    ]
    files: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
        "array.npy": (_npy(np.arange(12, dtype=np.float32).reshape(3, 4)), read_array),
        "color.png": ((root / "RGB" / "NYU0001_colors.png").read_bytes(), read_color_image),
        "color.jpg": (_image(frame.image, "JPEG"), read_color_image),
        "label_map.png": ((root / "Seg2D" / "0001.png").read_bytes(), read_label_map),
        "depth.png": (_image(_depth(), "PNG"), lambda path: guess_depth_encoding(read_depth_values(path))),
        "depth.tiff": (_image(_depth(), "TIFF"), lambda path: read_image(path, formats=("PNG", "TIFF"))),
        "list.txt": (b"0001\nNYU0002\n0003_0000\n\n", read_id_list),
        "labels.bin": (_raw_labels(), read_raw_labels),
        "config.yaml": (yaml.safe_dump(Config().model_dump(mode="json")).encode(), load_config),
        "weights.safetensors": (_weights(folder), read_weights),
        "weights.pth": (_torch(zipped=True), read_weights_file),
        "legacy.pth": (_torch(zipped=False), read_weights_file),
        "packed.safetensors": (_packed(frames, folder), _read_packed),
        "frame.pkl": (pickle.dumps({"target_1_4": frame.label, "img": "a/b.jpg"}), read_pickled_dict),
        "mesh.ply": (_MESH, lambda path: read_labeled_mesh(path, NYU)),
        "metrics.jsonl": (_metrics(), _read_metrics),
        "map.npz": (_map(folder), read_map),
        **{f"{_CAMERA} {name}": (content, _read_intrinsics) for name, content in _INTRINSICS.items()},
        **{f"{_CAMERA} {name}": (content, _read_poses) for name, content in _POSES.items()},
    }
    if importlib.util.find_spec("lzfse") is not None:
        recording = write_sequence(folder / "recording", "Record3D", small_frames(2))
        files["recording.r3d"] = (recording.read_bytes(), _read_recording)
    for name, (content, read) in files.items():
        path = folder / name
        path.write_bytes(content)
        kinds.append(Kind(name, path, content, read))
    for kind in kinds:
        kind.read(kind.path)  # as it is, every file is valid
    return kinds


def _cut(content: bytes, rng: np.random.Generator, kinds: Sequence[Kind]) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def _flip(content: bytes, rng: np.random.Generator, kinds: Sequence[Kind]) -> bytes:
    changed = bytearray(content)
    # Headers matter most.
    reach = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
    for place in rng.integers(max(reach, 1), size=int(rng.integers(1, 9))):
        if place < len(changed):
            changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(content: bytes, rng: np.random.Generator, kinds: Sequence[Kind]) -> bytes:
    size = int(rng.choice([1, 2, 4, 8]))
    number = _NUMBERS[int(rng.integers(len(_NUMBERS)))] % 2 ** (8 * size)
    order = "little" if rng.random() < 0.5 else "big"
    reach = len(content) if rng.random() < 0.3 else min(len(content), 400)
    place = int(rng.integers(reach + 1))
    return content[:place] + number.to_bytes(size, order) + content[place + size :]  # type: ignore[arg-type]


def _insert(content: bytes, rng: np.random.Generator, kinds: Sequence[Kind]) -> bytes:
    place = int(rng.integers(len(content) + 1))
    inserted = _WORDS[int(rng.integers(len(_WORDS)))] if rng.random() < 0.7 else rng.bytes(int(rng.integers(1, 50)))
    return content[:place] + inserted + content[place:]


def _move(content: bytes, rng: np.random.Generator, kinds: Sequence[Kind]) -> bytes:
    start, end, place = sorted(rng.integers(len(content) + 1, size=3).tolist())
    part = content[start : min(end, start + 5000)]
    return content[:place] + (b"\0" * len(part) if rng.random() < 0.3 else part) + content[place + len(part) // 2 :]


def _other(content: bytes, rng: np.random.Generator, kinds: Sequence[Kind]) -> bytes:
    other = kinds[int(rng.integers(len(kinds)))].content
    place = int(rng.integers(len(content) + 1))
    choices = [other, content[:place] + other[place:], other + content, b"<html>Log in</html>", b""]
    return choices[int(rng.integers(len(choices)))]


_MUTATIONS = (_cut, _flip, _flip, _overwrite, _overwrite, _insert, _move, _other)


def _odd_archive(rng: np.random.Generator, content: bytes) -> bytes:
    """A valid archive of odd arrays: other types, shapes, values, headers, compression, names."""
    types = ("u1", "i8", "f2", "f4", "f8", "?", "c8", "U3", "S4", "M8[s]", ">i4", "O", "f4,i4")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in members:
        choice = rng.random()
        if choice < 0.5:
            dtype = np.dtype(types[int(rng.integers(len(types)))])
            shapes = ((_VOXELS,), GRID, (1, *GRID), (0,), (), (_VOXELS + 1,), (2, _VOXELS))
            shape = shapes[int(rng.integers(len(shapes)))]
            values = np.zeros(shape, dtype=dtype)
            if dtype.kind in "iuf" and values.size:
                values[...] = rng.choice([0, 1, 255, -1 if dtype.kind != "u" else 1, 100])
                if dtype.kind == "f":
                    with np.errstate(over="ignore"):
                        values[...] = np.asarray(rng.choice([np.nan, np.inf, -np.inf, 1e30, 0.5, 307200.0])).astype(
                            dtype
                        )
            members[name] = _npy(values)
        elif choice < 0.8:
            header = members[name][:128]
            size = str(int(rng.choice([10**12, 10**20, -1, 0, 47]))).encode()
            members[name] = header.replace(str(_VOXELS).encode(), size) + members[name][128:]
        else:
            members[name] = _flip(members[name], rng, [])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", _COMPRESSIONS[int(rng.integers(4))]) as archive:
        for name, member in members.items():
            archive.writestr(name if rng.random() < 0.95 else "other.npy", member)
    packed = bytearray(file.getvalue())
    if rng.random() < 0.3:  # encrypted, or damaged within what is compressed
        places = [6, 8, int(rng.integers(30, len(packed)))]
        packed[places[int(rng.integers(3))]] ^= 1
    return bytes(packed)


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def _image(pixels: Any, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _depth() -> np.ndarray:
    rows, columns = np.mgrid[:480, :640]
    return ((1000 + rows + columns // 3) << 3).astype(np.uint16)


def _raw_labels() -> bytes:
    pose = np.concatenate([np.zeros(3), np.eye(4).reshape(-1)]).astype("<f4")
    total = int(np.prod(FINE_GRID_SHAPE))
    return pose.tobytes() + np.array([[0, 1000], [5, 2000], [255, total - 3000]], dtype="<u4").tobytes()


def _weights(folder: Path) -> bytes:
    path = folder / "new.safetensors"
    state = {"weight": torch.ones(3, 4), "norm.running_var": torch.ones(4), "half": torch.ones(2).half()}
    save_weights(path, state, model_config=ModelConfig(width=8), metadata={"epoch": "3"})
    return path.read_bytes()


def _torch(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    state = {"model": {"weight": torch.ones(3, 4), "bias": torch.zeros(4)}, "epoch": 3}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _map(folder: Path) -> bytes:
    path, surface = folder / "a map.npz", Surface(np.ones((3, 3)), np.eye(3), np.ones(3))
    reading = Reading().with_frame(surface, np.eye(4))
    fused = FusedFrames(Room(np.eye(4)), NYU)
    fused.add((0, 0), np.ones((NYU.num_classes + 2, 4, NYU.grid_shape[1], 4), np.int32))
    write_map(path, SavedMap(fused, [MapFrame("0001", GivenPose(np.eye(4)), None)], {"opencv": reading}, 1))
    return path.read_bytes()


def _packed(frames: FrameFolder, folder: Path) -> bytes:
    path = folder / "new_packed.safetensors"
    without_image = FrameFolder(frames.root, grid_shape=GRID, read_image=False)
    pack_set(without_image, path, progress=False, workers=1, overwrite=True)
    return path.read_bytes()


def _read_packed(path: Path) -> None:
    packed = PackedFrames(path, grid_shape=GRID)
    for frame_id in packed.frame_ids("train"):
        packed.read(frame_id)


def _metrics() -> bytes:
    scores = {
        "frames": 3,
        "sc": {"precision": 1.0, "recall": 2.0, "iou": 3.0},
        "ssc": {"miou": None, "iou": {"wall": 1.0, "floor": None}},
    }
    lines = [{"kind": "step", "step": step, "epoch": 1, "loss": 1.0} for step in (1, 2, 3)]
    return b"".join(
        json.dumps(line).encode() + b"\n"
        for line in [*lines, {"kind": "epoch", "epoch": 1, "step": 3, "validation": scores}]
    )


_CAMERA = "camera"
_INTRINSICS = {
    "matrix.txt": b"520 0 320\n0 520 240\n0 0 1\n",
    "named.json": b'{"color": {"width": 640, "height": 480, "fx": 520, "fy": 521, "ppx": 320, "ppy": 240}, "scale": 1}',
    "matrix.json": b'{"K": [[520, 0, 320], [0, 520, 240], [0, 0, 1]], "dist_coeffs": [0.1, 0, 0, 0, 0]}',
    "azure.json": b'{"SensorWidth": 640, "SensorHeight": 480, "Intrinsics": {"ModelParameters": [0.5, 0.5, 0.8, 1.0]}}',
    "ros.yaml": b"image_width: 640\nimage_height: 480\ncamera_matrix:\n  data: [520, 0, 320, 0, 520, 240, 0, 0, 1]\n",
    "sections.ini": b"[LEFT_HD]\nfx = 520\nfy = 520\ncx = 320\ncy = 240\n[RIGHT_HD]\nfx=521\nfy=521\ncx=320\ncy=240\n",
    "named.toml": b"[camera]\nfx = 520\nfy = 520.5\ncx = 320\ncy = 240\n",
    "opencv.xml": b"<?xml version='1.0'?><camera><fx>520</fx><fy>520</fy><cx>320</cx><cy>240</cy></camera>",
    "colmap.txt": b"# cameras\n1 PINHOLE 640 480 520 520 320 240\n2 OPENCV 1280 960 1040 1040 640 480 0.1 0 0 0\n",
}
_POSES = {
    "tum.txt": b"# stamp\n10.5 0 0 1 0 0 0 1\n11.5 0 1 1 0 0 0.6 0.8\n",
    "kitti.txt": b"1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 1 0 1 0 0 0 0 1 0\n",
    "redwood.log": b"0 0 1\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n1 1 2\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n",
    "poses.npy": _npy(np.tile(np.eye(4), (2, 1, 1))),
    "transforms.json": b'{"frames": [{"file_path": "images/frame_00001.png", "transform_matrix": '
    b"[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}]}",
}
"""Small valid calibrations and trajectories, by the names of their files."""


def _read_intrinsics(path: Path) -> None:
    read_intrinsics(str(path)).fitting([(480, 640)])


def _read_poses(path: Path) -> None:
    trajectory = read_trajectory(path)
    for time_stamp in (None, 10.5):
        with contextlib.suppress(FileError):
            trajectory.pose_of(time_stamp, names=["frame_00001"], index=1, count=2, numbers=(0, 1))


def _read_recording(path: Path) -> None:
    for frame in open_sequence(path).frames:
        frame.read()


def _read_metrics(path: Path) -> None:
    history = read_history(path.parent)
    if history.best is not None:
        table_html({f"epoch {history.best['epoch']}": history.best["validation"]})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000, help="files (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="only kinds with this in their name")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        findings = run(options.count, seed=options.seed, folder=Path(folder), only=options.only)
    for name in sorted(findings.accepted | findings.refused):
        print(f"{name:<22} {findings.refused[name]:>6} refused {findings.accepted[name]:>6} accepted")
    for fault in findings.faults[:50]:
        print(fault, file=sys.stderr)
    print(f"{options.count} files, raw errors: {len(findings.faults)}")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
