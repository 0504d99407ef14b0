"""Trained weights that come with the package, found by name."""

from pathlib import Path
from typing import Literal

from ammnet_sparse.models.weights.checks import WeightsError

FOLDER = Path(__file__).resolve().parents[2] / "weights"
DEFAULT_WEIGHTS = "nyu_seg2d_w64"
"""The default weights of the tools: trained on NYU, read 2D label maps (docs/models.md)."""

Input2D = Literal["label map", "color image", "depth alone"]
"""The inputs of a frame beside its depth."""
_WORDS: dict[Input2D, str] = {
    "label map": "2D label maps",
    "color image": "color images",
    "depth alone": "depth alone",
}
_BY_INPUT: dict[Input2D, tuple[str, ...]] = {
    "label map": ("nyu_seg2d_w64", "nyu_rgb_w64", "nyu_depth_w64"),
    "color image": ("nyu_rgb_w64", "nyu_depth_w64"),
    "depth alone": ("nyu_depth_w64",),
}
"""The default weights for each input, best first; wider networks have to be named."""


def list_models() -> list[str]:
    """Names of the trained weights that come with the package, sorted; ``load_model`` takes them."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def is_shipped(name: str | Path) -> bool:
    """Whether ``name`` means shipped weights. A file of that name in the working folder takes precedence."""
    return not Path(name).exists() and str(name) in list_models()


def find_weights(name: str | Path) -> Path:
    """The file of weights: ``name`` itself if it is the path of one, otherwise the shipped weights of that name.

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
            f"({', '.join(list_models()) or 'this installation has none'}); found {found}"
        )
    return path


def default_weights(given: Input2D | None) -> str:
    """The shipped weights taken for the given inputs by default; ``DEFAULT_WEIGHTS`` for None or without any."""
    installed = list_models()
    fitting = _BY_INPUT[given] if given else ()
    return next((name for name in fitting if name in installed), DEFAULT_WEIGHTS)


def chosen_weights(name: str | Path | None, *, dataset: str, given: Input2D | None = None) -> tuple[Path, str]:
    """The file of a tool's ``--checkpoint``, and a line for users that says which weights they are.

    Args:
        name: a path, the name of shipped weights, or None for ``default_weights``.
        dataset: layout of the frames; the default weights know NYU's TSDF only.
        given: inputs of the frames beside depth; None: a label map.

    Raises:
        WeightsError: no such weights, or the default does not fit.
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
            reason = f" (no --checkpoint given; for {_WORDS[given]})" if given else " (no --checkpoint given)"
        return path, f"Weights: {chosen}, shipped with ammnet_sparse{reason}; see docs/models.md"
    return path, f"Weights: {path}"
