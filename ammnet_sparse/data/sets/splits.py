"""The frames of a training list that are kept for validation, and the others."""

from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.ids import hash_of
from ammnet_sparse.files.errors import abbreviated


def validation_ids(source: FrameSource, *, split: str, count: int, seed: int) -> list[str]:
    """The frames of the training list ``split`` that are kept for validation.

    Those of ``val.txt`` if the set has it; otherwise ``count`` frames drawn by ``seed``: the frames with the smallest
    SHA-256 of ``"seed:frame_id"``, sorted by id. So the draw does not depend on any library or the order of the list.

    Raises:
        DataError: ``val.txt`` names a frame that is not in ``split``, or no frame would be left for training.
    """
    ids = source.frame_ids(split)
    if source.has_split("val"):
        validation = source.frame_ids("val")
        stray = sorted(set(validation) - set(ids))
        if stray:
            raise DataError(
                f"{source.list_path('val')}: expected frames of {source.list_path(split).name}, found "
                f"{abbreviated(stray)} that are not in it; correct one of the lists"
            )
        if len(validation) == len(ids):
            raise DataError(
                f"{source.list_path('val')}: expected fewer frames than {source.list_path(split).name}, found all "
                f"{len(ids)}; leave some for training"
            )
        return validation
    if not 0 < count < len(ids):
        raise DataError(
            f"validation frames: expected 1..{len(ids) - 1} of the {len(ids)} frames of {source.list_path(split)}, "
            f"found {count}; change their number, or add a val.txt"
        )
    return sorted(sorted(ids, key=lambda frame_id: hash_of(f"{seed}:{frame_id}"))[:count])


def training_ids(source: FrameSource, *, split: str, count: int, seed: int) -> list[str]:
    """The frames of ``split`` without ``validation_ids``, in the order of the list; the same errors."""
    validation = set(validation_ids(source, split=split, count=count, seed=seed))
    return [frame_id for frame_id in source.frame_ids(split) if frame_id not in validation]
