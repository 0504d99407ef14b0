"""The error of weights that cannot be used."""

from ammnet_sparse.files.errors import FileError


class WeightsError(FileError):
    """Weights that cannot be used; the message names the file, what was expected and what was found."""
