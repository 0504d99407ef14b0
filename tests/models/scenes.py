"""Small generated scenes and networks for the tests of models."""

from typing import Any

import torch
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL

GRID = (24, 12, 24)
IMAGE = (64, 96)


def small_config(**changes: Any) -> ModelConfig:
    values = {"width": 8, "grid_shape": GRID, "stem_widths": (2, 4), "discriminator_width": 8}
    return ModelConfig.model_validate(values | changes)


def some_scene(batch_size: int, *, grid: tuple[int, int, int] = GRID, seed: int = 0) -> Batch:
    """Rough ground seen from above: free space over it, occluded space below it, columns that nobody saw."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    x, height, y = grid
    ground = (uniform(batch_size, x, 1, y) * 3 + height / 3).floor()
    above = torch.arange(height).view(1, 1, height, 1) - ground
    is_seen = uniform(batch_size, x, 1, y) < 0.8
    tsdf = torch.where(is_seen, (above / 3).clamp(-1, 1), 0.0)
    is_hit = (above == 0) & is_seen & (uniform(batch_size, x, height, y) < 0.4)
    pixel = torch.randint(IMAGE[0] * IMAGE[1], tuple(is_hit.shape), generator=generator)
    label = torch.randint(12, tuple(is_hit.shape), generator=generator)
    label[uniform(*label.shape) < 0.1] = IGNORE_LABEL
    return Batch(
        tsdf=tsdf[:, None],
        mapping=torch.where(is_hit, pixel, -1).flatten(1).int(),
        label_weight=((above.abs() < 3) & (uniform(*label.shape) < 0.5)).flatten(1),
        label=label.flatten(1).byte(),
        image=torch.randn(batch_size, 3, *IMAGE, generator=generator),
        label_map=torch.randint(14, (batch_size, *IMAGE), generator=generator).byte(),
        frame_ids=tuple(f"{index:04d}" for index in range(batch_size)),
    )


def unsettle(network: nn.Module) -> None:
    """Gives normalization random weights and statistics, so that evaluation mode is not near the identity."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None and module.running_var is not None
                for values, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.1, 0.5),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.3, 0.8),
                ):
                    values.copy_(torch.rand(values.shape, generator=generator) * (high - low) + low)


def both(generator: nn.Module, discriminator: nn.Module) -> nn.ModuleDict:
    """The children of both networks, named as files of weights name them."""
    return nn.ModuleDict({**dict(generator.named_children()), "discriminator": discriminator})


def assert_near(found: Tensor, expected: Tensor, *, tolerance: float, name: str, scale: float | None = None) -> None:
    """Within ``tolerance`` of the largest absolute value expected (or of ``scale``)."""
    assert found.shape == expected.shape, name
    if scale is None:
        scale = float(expected.detach().abs().max())
    assert float((found - expected).detach().abs().max()) <= tolerance * scale, name
