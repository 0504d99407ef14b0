"""The frames of a set with the camera's field of view in place of the label weight: for scores of all voxels in it."""

import dataclasses
from pathlib import Path

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.sets.files import VIEW_KEY, as_label_weight, read_npz_array
from ammnet_sparse.data.sets.frame_source import FrameSource, WrappedFrames
from ammnet_sparse.files.arrays import array_names
from ammnet_sparse.files.errors import DataError


class FramesInView(WrappedFrames):
    """The frames of a folder whose label weight is 1 at every voxel in the camera's field of view.

    Args:
        source: a folder that ``ammnet data prepare`` made from pickles, or ``ammnet data mesh``.

    Raises:
        DataError: a packed set, which holds no field of view.
    """

    def __init__(self, source: FrameSource) -> None:
        if source.root.is_file():
            raise _without_view(source.root)
        super().__init__(source)

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        frame, problems = super().read_with_problems(frame_id)
        if frame is None:
            return None, problems
        path = self.files(frame_id)[0]
        try:
            if VIEW_KEY not in array_names(path):
                raise _without_view(path)
            view = as_label_weight(read_npz_array(path, VIEW_KEY, grid_shape=self.info.grid_shape), path)
        except DataError as error:
            return None, [error]
        return dataclasses.replace(frame, label_weight=view), []


def _without_view(path: Path) -> DataError:
    return DataError(
        f"{path}: expected the camera's field of view (array {VIEW_KEY!r} beside the TSDF), found none; only folders "
        "made by `ammnet data prepare` from pickles, or by `ammnet data mesh`, have it"
    )
