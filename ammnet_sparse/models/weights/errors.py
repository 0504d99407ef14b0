"""The error of everything about weights: apart, so that no module here must import another for it."""

from ammnet_sparse.files.errors import FileError


class WeightsError(FileError):
    """A weights file that does not hold what is expected; the message names the file and the weights."""
