"""AMMNet-sparse: semantic scene completion from one RGB-D view on a graphics card you can afford."""

from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"
__all__ = [
    "AMMNet",
    "Batch",
    "CompletedScene",
    "ModelConfig",
    "Prediction",
    "SceneCompleter",
    "SceneMap",
    "__version__",
    "list_models",
    "load_discriminator",
    "load_model",
]

if TYPE_CHECKING:
    from ammnet_sparse.completion import SceneCompleter
    from ammnet_sparse.config import ModelConfig
    from ammnet_sparse.data.batch import Batch
    from ammnet_sparse.models.ammnet import AMMNet, Prediction
    from ammnet_sparse.models.weights.loading import load_discriminator, load_model
    from ammnet_sparse.models.weights.shipped import list_models
    from ammnet_sparse.pictures.outputs import CompletedScene
    from ammnet_sparse.scene_map.scene_map import SceneMap

_HOMES = {
    "AMMNet": "models.ammnet",
    "Batch": "data.batch",
    "CompletedScene": "pictures.outputs",
    "ModelConfig": "config",
    "Prediction": "models.ammnet",
    "SceneCompleter": "completion",
    "SceneMap": "scene_map.scene_map",
    "list_models": "models.weights.shipped",
    "load_discriminator": "models.weights.loading",
    "load_model": "models.weights.loading",
}


def __getattr__(name: str) -> Any:
    """Imports the network only on first access, so that tools that only read data start quickly."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion in a notebook."""
    return list(__all__)
