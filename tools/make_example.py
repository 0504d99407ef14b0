"""Makes the example of a user's own frame: a generated room as a depth camera would record it.

    python tools/make_example.py examples/frame

Writes color.jpg and depth.png (16 bits, millimeters, noise like a Kinect's) of 640x480, intrinsics.txt (3x3),
pose.txt (4x4, camera to world, Z up, floor at 0) and label_map.png (for checkpoints that read 2D label maps).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ammnet_sparse.data.synthetic.frame import generate_frame
from ammnet_sparse.data.volumes.camera import NYU_CAMERA

SEED, INDEX = 2024, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write to, made if missing")
    folder = parser.parse_args().folder
    write_example(folder)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def write_example(folder: Path) -> None:
    """Writes one frame of generated rooms as the files of a user's camera."""
    frame = generate_frame(SEED, INDEX, noise="kinect")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.image).save(folder / "color.jpg", quality=90)
    Image.fromarray(np.round(frame.depth * 1000).astype(np.uint16)).save(folder / "depth.png", optimize=True)
    Image.fromarray(frame.label_map).save(folder / "label_map.png", optimize=True)
    camera = NYU_CAMERA
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    np.savetxt(folder / "intrinsics.txt", matrix, fmt="%.4f")
    np.savetxt(folder / "pose.txt", frame.pose, fmt="%.6f")


if __name__ == "__main__":
    main()
