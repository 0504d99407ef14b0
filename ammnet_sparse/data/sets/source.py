"""Opens a set of frames, a folder in the published layout or a packed file, for any use or for a network."""

from pathlib import Path

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.grid import DatasetName, GridShape
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.packed import PackedFrames
from ammnet_sparse.files.errors import DataError


def open_frames(
    root: str | Path,
    *,
    dataset: DatasetName = "nyu",
    read_image: bool | None = None,
    read_label_map: bool | None = None,
    grid_shape: GridShape | None = None,
) -> FrameSource:
    """The set in ``root``: a packed file (``packed.PackedFrames``), or a folder (``folder.FrameFolder``).

    Args:
        dataset: layout of a folder; of a packed file, what it was made from.
        read_image: read color images; None: where the set has them.
        read_label_map: read 2D label maps; None: likewise.
        grid_shape: voxels along (X, height, Y) that the set must have; None: that of the set's description, or NYU's.

    Raises:
        DataError: no set there, or one that lacks the parts asked for.
    """
    kind: type[PackedFrames] | type[FrameFolder] = PackedFrames if Path(root).is_file() else FrameFolder
    return kind(root, dataset=dataset, read_image=read_image, read_label_map=read_label_map, grid_shape=grid_shape)


def open_set(
    root: str | Path,
    *,
    dataset: DatasetName,
    config: ModelConfig,
    for_pictures: bool = False,
    with_label_maps: bool = False,
) -> FrameSource:
    """The set in ``root`` with the 2D input that the network needs, and others only if pictures show them.

    Args:
        with_label_maps: with 2D label maps, whatever the network reads.

    Raises:
        DataError: no set, or one without that input or with another number of classes.
    """
    # First without the input that is needed, so that an error below can only concern it.
    others = None if for_pictures else False
    source = open_frames(root, dataset=dataset, read_image=others, read_label_map=others, grid_shape=config.grid_shape)
    check_classes(source, config.num_classes)
    reads_label_map = config.reads_label_map or with_label_maps
    if not config.reads_image and not reads_label_map:
        return source
    try:
        return open_frames(
            root,
            dataset=dataset,
            read_image=config.reads_image or others,
            read_label_map=reads_label_map or others,
            grid_shape=config.grid_shape,
        )
    except DataError as error:
        wanted = (("color images (folder RGB)", config.reads_image), ("2D label maps (folder Seg2D)", reads_label_map))
        kinds = [kind for kind, is_read in wanted if is_read]
        raise DataError(
            f"{root}: model.image_encoder: {config.image_encoder} needs {' and '.join(kinds)}, found "
            f"{'none' if len(kinds) == 1 else 'not both'}; add them, or use a network that does not read them"
        ) from error


def check_classes(source: FrameSource, num_classes: int) -> None:
    """Raises DataError if the set has another number of classes than the network."""
    if source.info.num_classes != num_classes:
        raise DataError(
            f"{source.root}: expected {num_classes} classes, as many as model.num_classes, found "
            f"{source.info.num_classes}: {', '.join(source.info.class_names)}; use another set, or another network"
        )


def check_labels(source: FrameSource) -> None:
    """Raises DataError if the set has no ground truth."""
    if not source.has_labels:
        raise DataError(f"{source.root}: expected ground truth (folder Label), found none; a set without cannot score")
