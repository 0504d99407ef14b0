"""One self-contained HTML page of completed scenes: a 3D view with prediction, truth, errors and input.

The page contains its scripts, styles, volumes and images; it fetches nothing and works offline.
"""

import base64
import dataclasses
import gzip
import hashlib
import html
import io
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import EMPTY_LABEL
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.pictures.comparison import ERROR_COLORS, Rgb, check_shape, check_volume
from ammnet_sparse.pictures.palettes import painted

PART_COLORS: dict[str, Rgb] = {"observed surface": (122, 128, 140), "completed": (240, 160, 40)}
"""Colors of voxels that a pixel hits, and of all others."""

_SCRIPTS = ("volume.js", "camera.js", "renderer.js", "page.js")
_IN_MASK, _HIT = 1, 2
_LARGEST_IMAGE, _JPEG_QUALITY = 640, 85
_MOST_VOXELS = 65535
"""Along an axis; the script holds places in 16 bits."""
_VIEW_CORNERS = np.array([[-0.32, -0.24, 0.5, 1], [0.32, -0.24, 0.5, 1], [0.32, 0.24, 0.5, 1], [-0.32, 0.24, 0.5, 1]])
"""Of the pyramid drawn for a camera: meters along the axes of the camera."""
_HEAD = 2000
"""Characters of a page that hold its title."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A scene of the page.

    Attributes:
        name: its entry in the list of scenes.
        prediction: [X, H, Y] uint8, a class; 255 is not drawn.
        truth: the same; voxels of 255 are not drawn in the errors. None: truth and errors are not available.
        mask: [X, H, Y] bool, the voxels of prediction and truth that are shown, for instance the scored ones; the
            others are hidden at first. None: all.
        hit: [X, H, Y], the voxels that a pixel hits: bool, or integer as ``Frame.mapping``, the pixel
            ``row * columns + column`` of ``image`` and -1 for none; then the image colors the input surface.
        image: [rows, columns, 3] uint8 RGB, the input image.
        note: text shown beside the scene.
        camera_position: (X, Y) of the camera in voxels, usually outside of the grid; None if unknown:
            then the page only marks the camera's side.
        poses: [N, 4, 4], of a room the cameras (x right, y down, z forward, in meters) to voxels along (X, height, Y),
            in the order of the frames. One looks into a room through its walls: they, windows and ceiling have no faces
            towards voxels of 255 and the outside of the grid. None: a frame.
        info: the set, which has names and colors of the classes and the size of the voxels.

    Raises:
        ValueError: arrays of other shapes, types or values; the message names scene and attribute.
    """

    name: str
    prediction: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None
    mask: NDArray[np.bool_] | None = None
    hit: NDArray[Any] | None = None
    image: NDArray[np.uint8] | None = None
    note: str = ""
    camera_position: tuple[float, float] | None = None
    poses: NDArray[np.float64] | None = None
    info: SetInfo = NYU

    def __post_init__(self) -> None:
        shape = self.prediction.shape
        try:
            check_volume("prediction", self.prediction, shape, info=self.info)
            if max(shape) > _MOST_VOXELS:
                raise ValueError(
                    f"prediction: expected at most {_MOST_VOXELS} voxels along an axis, found {list(shape)}"
                )
            if self.poses is not None:
                check_shape("poses", self.poses, (max(len(self.poses), 1), 4, 4))
            if self.truth is not None:
                check_volume("truth", self.truth, shape, info=self.info)
            if self.mask is not None:
                check_shape("mask", self.mask, shape)
            if self.image is not None and (self.image.shape[2:] != (3,) or self.image.dtype != np.uint8):
                raise ValueError(
                    f"image: expected [rows, columns, 3] uint8, found {list(self.image.shape)} {self.image.dtype}"
                )
            if self.hit is not None:
                check_shape("hit", self.hit, shape)
                self._check_pixels(self.hit)
        except ValueError as error:
            raise ValueError(f"scene {self.name!r}: {error}") from error

    @property
    def hit_colors(self) -> NDArray[np.uint8] | None:
        """[N, 3] RGB of the hit voxels in flat order; None without an image or a mapping."""
        if self.hit is None or self.image is None or self.hit.dtype == np.bool_:
            return None
        return self.image.reshape(-1, 3)[self.hit[self.hit >= 0]]

    @property
    def hit_mask(self) -> NDArray[np.bool_]:
        """[X, H, Y]: voxels that a pixel hits."""
        if self.hit is None:
            return np.zeros(self.prediction.shape, dtype=np.bool_)
        return self.hit if self.hit.dtype == np.bool_ else self.hit >= 0

    def _check_pixels(self, hit: NDArray[Any]) -> None:
        if hit.dtype.kind not in "bi":
            raise ValueError(f"hit: expected bool, or signed integers with -1 for no pixel, found {hit.dtype}")
        if self.image is not None and hit.dtype.kind == "i":
            num_pixels = self.image.shape[0] * self.image.shape[1]
            if hit.max(initial=-1) >= num_pixels:
                raise ValueError(f"hit: expected pixels below {num_pixels}, those of image, found {hit.max()}")


def write_page(path: str | Path, scenes: Sequence[Scene], *, title: str, introduction: str = "") -> Path:
    """Writes the page, one file that any browser with WebGL2 opens, and returns its path.

    Args:
        path: file to write; an existing one is replaced atomically.
        scenes: in the order of the list, all of the same classes; about 0.1 MB each with an image.
        title: heading of the page, plain text.
        introduction: HTML inserted unchanged before the 3D view; required without scenes. Scripts in it never run.

    Raises:
        ValueError: nothing to show, or scenes of several class lists.
        OSError: the file cannot be written.
    """
    if not scenes and not introduction:
        raise ValueError("scenes: expected at least one scene, found none")
    viewer = _viewer(scenes[0].info, scenes) if scenes else ""
    page = _page(viewer, title=title, introduction=introduction)
    write_text(path, page)
    return Path(path)


def live_page(info: SetInfo, *, title: str, has_room: bool = False) -> str:
    """A page for scenes of a set that are made while it is open.

    It asks for ``newest?after=NUMBER``, again and again, and expects ``{"number": N, "scene": ...}`` with the
    ``scene_data`` of a scene with another number, or status 204 for none. With ``has_room`` it asks for
    ``room?after=NUMBER`` too and shows that scene, with the newest one's image, unless a switch asks for the frame.
    """
    return _page(_viewer(info, [], live=True, has_room=has_room), title=title, connections="'self'")


def _viewer(info: SetInfo, scenes: Sequence[Scene], *, live: bool = False, has_room: bool = False) -> str:
    data = {**_page_data(info, scenes), "live": live, "hasRoom": has_room}
    script = "\n".join(_template(name) for name in _SCRIPTS)
    return Template(_template("viewer.html")).substitute(data=_to_json(data), script=script)


def _page(viewer: str, *, title: str, introduction: str = "", connections: str = "'none'") -> str:
    return Template(_template("page.html")).substitute(
        title=html.escape(title),
        style=_template("page.css"),
        introduction=introduction,
        viewer=viewer,
        script_source=_script_source(viewer),
        connections=connections,
    )


def is_page(path: str | Path, *, title: str) -> bool:
    """Whether ``write_page`` has written this file, with this title."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return f"<title>{html.escape(title)}</title>" in file.read(_HEAD)
    except (OSError, UnicodeDecodeError):
        return False


def _template(name: str) -> str:
    return (resources.files("ammnet_sparse.pictures") / "templates" / name).read_text(encoding="utf-8")


def _script_source(viewer: str) -> str:
    """The page's content security policy: only its own script, identified by its hash, may run."""
    scripts = re.findall(r"<script>(.*?)</script>", viewer, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"


def _to_json(value: Any) -> str:
    # "</script>" in a name must not end the script.
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _page_data(info: SetInfo, scenes: Sequence[Scene]) -> dict[str, Any]:
    if any((scene.info.classes, scene.info.voxel_size) != (info.classes, info.voxel_size) for scene in scenes):
        raise ValueError("scenes: expected scenes of the same classes and voxel size, found several")
    # The ceiling would hide the room in the initial view from above.
    distinct = painted(info, "distinct").classes
    classes = [
        {
            "name": name,
            "color": color,
            "distinct": distinct[name],
            "hidden": label == info.ceiling,
            "skipped": label == EMPTY_LABEL,
            "shell": label in info.shell,
        }
        for label, (name, color) in enumerate(info.classes.items())
    ]
    return {
        "voxelSize": info.voxel_size,
        "classes": classes,
        "errors": [{"name": name, "color": color} for name, color in ERROR_COLORS.items()],
        "parts": [{"name": name, "color": color} for name, color in PART_COLORS.items()],
        "scenes": [scene_data(scene) for scene in scenes],
    }


def scene_data(scene: Scene, *, compression: int = 9) -> dict[str, Any]:
    """A scene as JSON for ``decodeScene`` in volume.js: concatenated flat volumes, gzip, base64.

    Args:
        scene: to show.
        compression: gzip's; 3 takes a twentieth of the time of 9, and half as many bytes more.
    """
    flags = np.full(scene.prediction.shape, _IN_MASK, dtype=np.uint8)
    if scene.mask is not None:
        flags[~scene.mask.astype(np.bool_)] = 0
    flags[scene.hit_mask] |= _HIT
    colors = scene.hit_colors
    volumes = [scene.prediction, flags, *([] if scene.truth is None else [scene.truth])]
    packed = b"".join(volume.tobytes() for volume in (*volumes, *([] if colors is None else [colors])))
    return {
        "name": scene.name,
        "note": scene.note,
        "shape": list(scene.prediction.shape),
        "camera": scene.camera_position,
        "hasTruth": scene.truth is not None,
        "hasMask": scene.mask is not None,
        "hasHit": scene.hit is not None,
        "hasHitColors": colors is not None,
        "image": None if scene.image is None else _image_address(scene.image),
        **_path_data(scene.poses),
        "volumes": base64.b64encode(gzip.compress(packed, compression, mtime=0)).decode("ascii"),
    }


def _path_data(poses: NDArray[np.float64] | None) -> dict[str, Any]:
    """The places of a room's cameras, and the corners of the newest one's view, in voxels; nothing for a frame."""
    if poses is None:
        return {}
    return {"path": poses[:, :3, 3].round(2).tolist(), "view": (_VIEW_CORNERS @ poses[-1, :3].T).round(2).tolist()}


def _image_address(image: NDArray[np.uint8]) -> str:
    """The image as a data URL, a JPEG of at most 640 pixels along its longer side."""
    picture = Image.fromarray(image)
    picture.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
