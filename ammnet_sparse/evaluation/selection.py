"""The frames of a set that a trained network runs on, and whether it can run on a camera's."""

from collections.abc import Sequence

from ammnet_sparse.config import DataConfig, ModelConfig
from ammnet_sparse.data.grid import GRID_SHAPE, VOXEL_SIZE
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.data.sets.frame_source import FrameSource, training_ids, validation_ids
from ammnet_sparse.files.errors import DataError, abbreviated

LABEL_MAP_NOTE = (
    "Note: the network reads 2D label maps. Those published for NYU agree with the truth of the test images as well "
    "as with that of the training images,\nso figures made with them compare only with each other "
    "(the paper's DeepLabv3 rows, CVSformer)."
)
"""Shown with every figure of a network that reads label maps."""


def split_ids(
    source: FrameSource, split: str, *, limit: int | None = None, validation_frames: int | None = None
) -> list[str]:
    """The ids of a list; ``train`` excludes the frames held out, ``val`` is ``val.txt`` or the frames drawn.

    Args:
        limit: only so many of the first frames.
        validation_frames: how many frames are drawn if there is no ``val.txt``, as ``data.validation_frames`` of
            the training run; None: the default of that key.

    Raises:
        DataError: no such list, or one that cannot be used.
    """
    defaults = DataConfig()
    count = defaults.validation_frames if validation_frames is None else validation_frames
    if split == "val":
        ids = validation_ids(source, split=defaults.split, count=count, seed=defaults.validation_seed)
    elif split == "train":
        ids = training_ids(source, split=defaults.split, count=count, seed=defaults.validation_seed)
    else:
        ids = source.frame_ids(split)
    return ids[:limit]


def check_ids(source: FrameSource, ids: Sequence[str]) -> None:
    """Raises DataError naming the frames of which the set has no TSDF."""
    unknown = [frame_id for frame_id in ids if not source.has_frame(frame_id)]
    if unknown:
        raise DataError(
            f"{source.root}: expected frames of the set, found unknown ids {abbreviated(unknown)}; "
            "the set's lists name those that are there"
        )


def check_grid(config: ModelConfig, info: SetInfo = NYU) -> None:
    """Raises DataError if the network was trained on another grid than that of own frames.

    Args:
        info: the set that it was trained on.
    """
    if info.voxel_size != VOXEL_SIZE:
        raise DataError(
            f"the checkpoint: expected a network trained on voxels of {VOXEL_SIZE} m, which frames of a camera are "
            f"made for, found {info.voxel_size} m; use another checkpoint"
        )
    if tuple(config.grid_shape) != GRID_SHAPE:
        raise DataError(
            f"the checkpoint: expected model.grid_shape {list(GRID_SHAPE)}, which frames of a camera are made for, "
            f"found {list(config.grid_shape)}; use another checkpoint"
        )


def check_inputs(config: ModelConfig, *, has_color: bool, has_label_map: bool) -> list[str]:
    """Notes on inputs of a camera's frame that the network does not read.

    Raises:
        DataError: the network reads a label map or a color image, and there is none; with advice.
    """
    if config.reads_label_map and not has_label_map:
        raise DataError(
            "label map: expected one, which these weights read (model.image_encoder: seg2d), found none. Either\n"
            "  - use weights that read what you have: `weights='nyu_rgb_w64'` reads the color image, "
            "`weights='nyu_depth_w64'` depth alone; both are shipped; or\n"
            "  - give a label map of the color image (`label_map`): a png with one channel of NYU's 13 classes, from "
            "any 2D segmentation network trained on them:\n    0 void, 1 bed, 2 books, 3 ceiling, 4 chair, 5 floor, "
            "6 furniture, 7 objects, 8 picture, 9 sofa, 10 table, 11 tv, 12 wall, 13 window.\n    "
            "Of zeros (void) it runs too, but then shape alone must tell the classes"
        )
    if config.reads_image and not has_color:
        raise DataError(
            "color image: expected one, which these weights read, found none; give one (`color`), or use weights that "
            "read depth alone, such as the shipped nyu_depth_w64"
        )
    notes = []
    if has_label_map and not config.reads_label_map:
        notes.append("label map: these weights do not read it; the shipped nyu_seg2d_w64 does")
    if has_color and not config.reads_image:
        reading = "the label map" if config.reads_label_map else "depth alone"
        notes.append(
            f"color image: these weights do not read it (they read {reading}), only pictures show it; the shipped "
            "nyu_rgb_w64 does"
        )
    return notes
