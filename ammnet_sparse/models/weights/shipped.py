"""Trained weights that come with the package, found by name."""

from pathlib import Path
from typing import Literal

from ammnet_sparse.models.weights.errors import WeightsError

FOLDER = Path(__file__).resolve().parents[2] / "weights"
DEFAULT_WEIGHTS = "nyu_seg2d_w64"
"""What the tools take where no checkpoint is named: trained on NYU, reads 2D label maps (docs/models.md)."""

Input2D = Literal["label map", "color image", "depth alone"]
"""What there is of a frame beside its depth."""
_BY_INPUT: dict[Input2D, tuple[str, ...]] = {
    "label map": ("nyu_seg2d_w64", "nyu_rgb_w64", "nyu_depth_w64"),
    "color image": ("nyu_rgb_w64", "nyu_depth_w64"),
    "depth alone": ("nyu_depth_w64",),
}
"""Shipped weights that can read each, the best first."""


def shipped_names() -> list[str]:
    """Names of the weights in this installation, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def is_shipped(name: str | Path) -> bool:
    """Whether ``name`` means shipped weights. A file of that name in the working folder comes first."""
    return not Path(name).exists() and str(name) in shipped_names()


def find_weights(name: str | Path) -> Path:
    """The file of weights: ``name`` itself where it is a path of one, else the shipped weights of that name.

    Raises:
        WeightsError: neither; the message lists the shipped names.
    """
    if is_shipped(name):
        return FOLDER / f"{name}.safetensors"
    path = Path(name)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise WeightsError(
            f"{path}: expected a file with weights, or the name of shipped ones "
            f"({', '.join(shipped_names()) or 'this installation has none'}); found {found}"
        )
    return path


def default_weights(given: Input2D | None) -> str:
    """The shipped weights that make the most of what is given; None, or none installed: ``DEFAULT_WEIGHTS``."""
    there = shipped_names()
    fitting = _BY_INPUT[given] if given else ()
    return next((name for name in fitting if name in there), DEFAULT_WEIGHTS)


def chosen_weights(name: str | Path | None, *, dataset: str, given: Input2D | None = None) -> tuple[Path, str]:
    """The file that a tool's ``--checkpoint`` means, and a line that says aloud which weights they are.

    Args:
        name: a path, the name of shipped weights, or None for ``default_weights``.
        dataset: layout of the frames; the default weights know NYU's TSDF only.
        given: what the frames have beside depth; None: not asked, a label map.

    Raises:
        WeightsError: no such weights, or none named where the default does not fit.
    """
    default = default_weights(given)
    if name is None and dataset != "nyu":
        raise WeightsError(
            f"--checkpoint: expected weights trained on {dataset}, found none; the default, {default}, was "
            "trained on nyu, whose TSDF follows another convention"
        )
    chosen = default if name is None else name
    path = find_weights(chosen)
    if is_shipped(chosen):
        reason = ""
        if name is None:
            reason = f" (no --checkpoint given; for {given})" if given else " (no --checkpoint given)"
        return path, f"Weights: {chosen}, shipped with ammnet_sparse{reason}; see docs/models.md"
    return path, f"Weights: {path}"
