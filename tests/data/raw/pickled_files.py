"""Writers of Occ-ScanNet's and MonoScene's files for tests: a generated room, seen along any direction."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.synthetic.frame import SyntheticFrame, generate_frame
from ammnet_sparse.data.volumes.camera import NYU_CAMERA
from tests.data.raw.raw_files import write_depth


def room(index: int) -> SyntheticFrame:
    return generate_frame(5, index, noise="none")


def turned(frame: SyntheticFrame, quarters: int) -> dict[str, Any]:
    """The entries of a frame's volumes in a world turned counterclockwise by quarters, [60, 60, 36] along (x, y, z)."""
    turn = np.eye(4)
    cosine, sine = round(math.cos(quarters * math.pi / 2)), round(math.sin(quarters * math.pi / 2))
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    corners = np.stack([frame.origin, frame.origin + [4.8, 4.8, 2.88]]) @ turn[:3, :3].T
    origin = corners.min(axis=0)
    target = np.zeros((60, 60, 36), dtype=np.uint8)
    old = np.moveaxis(np.indices((60, 36, 60)), 0, -1).reshape(-1, 3)[:, [0, 2, 1]]
    centers = frame.origin + (old + 0.5) * 0.08
    new = np.floor((centers @ turn[:3, :3].T - origin) / 0.08).astype(np.int64)
    target[tuple(new.T)] = frame.label
    return {"cam_pose": turn @ frame.pose, "voxel_origin": origin, "target_1_4": target}


def write_occscannet(folder: Path, names: dict[str, list[str]], *, first_index: int = 0) -> dict[str, SyntheticFrame]:
    """Lists, pickles and images by list; frame i of all looks along another direction. Returns the frames by id."""
    folder.mkdir(parents=True, exist_ok=True)
    frames: dict[str, SyntheticFrame] = {}
    for split, listed in names.items():
        (folder / f"{split}_subscenes.txt").write_text("".join(f"gathered_data/{name}.pkl\n" for name in listed))
        for name in listed:
            index = len(frames) + first_index
            frames[name.replace("/", "_")] = frame = room(index)
            images = folder / "posed_images" / Path(name).parent
            images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame.image).resize((1296, 968)).save(images / f"{Path(name).name}.jpg", quality=95)
            Image.fromarray(_millimeters(frame.depth)).save(images / f"{Path(name).name}.png")
            entries = turned(frame, index) | {
                "img": f"/home/somebody/posed_images/{name}.jpg",
                "depth_gt": f"data/posed_images/{name}.png",
                "intrinsic": _intrinsic_of(1296, 968),
                "target_1_16": np.zeros((15, 15, 9), dtype=np.uint8),
            }
            write_pickle(folder / "gathered_data" / f"{name}.pkl", entries)
    return frames


def write_monoscene(folder: Path, images: Path, frame_id: str, frame: SyntheticFrame) -> None:
    """A pickle, its color image and its raw depth."""
    entries = turned(frame, 0)
    target = np.ascontiguousarray(entries["target_1_4"].transpose(0, 2, 1))
    name = f"NYU{frame_id}_0000"
    write_pickle(folder / f"{name}.pkl", entries | {"name": name, "target_1_4": target.astype(np.float32)})
    images.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.image).save(images / f"{name}_color.jpg")
    write_depth(images / f"{name}.png", frame.depth)


def write_pickle(path: Path, entries: Any, *, protocol: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(entries, protocol=protocol))


def _millimeters(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.round(depth * 1000).astype(np.uint16)


def _intrinsic_of(columns: int, rows: int) -> NDArray[np.float64]:
    """[4, 4] of NYU's camera for an image of another size."""
    matrix = np.eye(4)
    scale = columns / 640, rows / 480
    matrix[0, 0], matrix[1, 1] = NYU_CAMERA.fx * scale[0], NYU_CAMERA.fy * scale[1]
    matrix[0, 2], matrix[1, 2] = (NYU_CAMERA.cx + 0.5) * scale[0] - 0.5, (NYU_CAMERA.cy + 0.5) * scale[1] - 0.5
    return matrix
