"""AMMNet-sparse: semantic scene completion from one RGB-D view on a graphics card you can afford."""

from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"
__all__ = [
    "AMMNet",
    "Batch",
    "CompletedScene",
    "Prediction",
    "SceneCompleter",
    "__version__",
    "load_discriminator",
    "load_model",
]

if TYPE_CHECKING:
    from ammnet_sparse.completion import CompletedScene, SceneCompleter
    from ammnet_sparse.data.batch import Batch
    from ammnet_sparse.models.ammnet import AMMNet, Prediction
    from ammnet_sparse.models.weights.loading import load_discriminator, load_model

_HOMES = {
    "AMMNet": "ammnet_sparse.models.ammnet",
    "Batch": "ammnet_sparse.data.batch",
    "CompletedScene": "ammnet_sparse.completion",
    "Prediction": "ammnet_sparse.models.ammnet",
    "SceneCompleter": "ammnet_sparse.completion",
    "load_discriminator": "ammnet_sparse.models.weights.loading",
    "load_model": "ammnet_sparse.models.weights.loading",
}


def __getattr__(name: str) -> Any:
    """Imports the network only on first access, so that tools that only read data start quickly."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
