"""The discriminator: distinguishes true scenes from predicted and perturbed ones (section 4.2 of the paper)."""

import torch
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.sparse.blocks import DDRBlock, RecomputeLevel, run_blocks, set_recompute
from ammnet_sparse.sparse.convolutions import Linear, PointwiseConv3d
from ammnet_sparse.sparse.recipes import recipes_kept
from ammnet_sparse.sparse.sites import SiteSet


class Discriminator(nn.Module):
    """Scores scenes of ``num_classes`` channels, one-hot or logits; positive means real."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid_shape = config.grid_shape
        width = config.discriminator_width
        self.keeps_recipes = False
        self.embed = PointwiseConv3d(config.num_classes, width, bias=False)
        self.blocks = nn.ModuleList(
            [
                DDRBlock(width, width // 4, expansion=4, stride=2),
                DDRBlock(width, width // 4, expansion=8, stride=2),
                DDRBlock(2 * width, width // 2, expansion=4, stride=3),
                DDRBlock(2 * width, width // 2, expansion=4),
            ]
        )
        x, height, y = (size // 12 for size in config.grid_shape)
        self.hidden = Linear(2 * width * x * height * y, 2 * width)
        self.score = Linear(2 * width, 1)

    def set_recompute(self, level: RecomputeLevel) -> None:
        """Which activations the backward pass recomputes; levels as in ``AMMNet.set_recompute``."""
        self.keeps_recipes = level != "off"
        set_recompute(self, level)

    def forward(self, features: Tensor, sites: SiteSet, *, num_groups: int = 1) -> Tensor:
        """Logits [B, 1] that scenes are real, differentiable in the features.

        For a prediction: ``discriminator(prediction.voxel_logits, prediction.sites)``, predicted with
        ``voxels="scored"``. The discriminator was trained on the scored voxels alone, so it has to be given the same
        for truth, prediction and fakes; ``Prediction.logits`` holds voxels that were never computed.

        Args:
            features: [N, num_classes], one-hot or logits, rows in the order of ``sites``.
            sites: voxels of the full resolution that the features belong to.
            num_groups: groups of equally many scenes, all with the same sites (see ``repeated_sites``), that are
                scored as in separate forward passes: in training mode each is normalized by its own statistics,
                and the running ones are updated by the first group, then by the second, and so on.

        Raises:
            TypeError: no sites.
            ValueError: another number of channels or rows, sites of another grid than the configuration's, or scenes
                or sites that do not make ``num_groups`` equal groups.
        """
        if not isinstance(sites, SiteSet):
            raise TypeError(
                f"sites: expected the voxels of the features (prediction.sites), found {type(sites).__name__}"
            )
        if sites.spatial_shape != tuple(self.grid_shape):
            raise ValueError(f"sites: expected sites of the grid {tuple(self.grid_shape)}, found {sites.spatial_shape}")
        expected = [len(sites), self.embed.in_channels]
        if list(features.shape) != expected:
            raise ValueError(
                f"features: expected {expected}, a row a site, found {list(features.shape)}; give "
                "prediction.voxel_logits with prediction.sites"
            )
        if num_groups < 1 or sites.batch_size % num_groups or len(sites) % num_groups:
            raise ValueError(
                f"num_groups: expected a divisor of {sites.batch_size} scenes with {len(sites)} sites, "
                f"found {num_groups}"
            )
        with recipes_kept(self.keeps_recipes):
            hidden, here = run_blocks(self.blocks, self.embed(features), sites, num_groups=num_groups)
            flat = here.densify(hidden).flatten(1)
            scores: Tensor = self.score(torch.relu(self.hidden(flat)))
        return scores
