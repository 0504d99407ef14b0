"""The discriminator: tells true scenes from predicted and perturbed ones (section 4.2 of the paper)."""

import torch
from torch import Tensor, nn

from ammnet_sparse.sparse.blocks import DDRBlock
from ammnet_sparse.sparse.convolutions import PointwiseConv3d
from ammnet_sparse.sparse.recipes import recipes_kept
from ammnet_sparse.sparse.sites import SiteSet, full_sites


class Discriminator(nn.Module):
    """Scores scenes of ``num_classes`` channels, one-hot or logits; positive means real."""

    def __init__(self, num_classes: int, *, width: int, grid_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid_shape = grid_shape
        self.keeps_recipes = False
        self.embed = PointwiseConv3d(num_classes, width, bias=False)
        self.blocks = nn.ModuleList(
            [
                DDRBlock(width, width // 4, expansion=4, stride=2),
                DDRBlock(width, width // 4, expansion=8, stride=2),
                DDRBlock(2 * width, width // 2, expansion=4, stride=3),
                DDRBlock(2 * width, width // 2, expansion=4),
            ]
        )
        x, height, y = (size // 12 for size in grid_shape)
        self.hidden = nn.Linear(2 * width * x * height * y, 2 * width)
        self.score = nn.Linear(2 * width, 1)

    def forward(self, volume: Tensor, sites: SiteSet | None = None, *, num_groups: int = 1) -> Tensor:
        """Logits [B, 1] that scenes are real.

        Args:
            volume: [B, num_classes, X, H, Y] (every voxel is a site), or with ``sites`` features [N, num_classes].
            sites: where the features live; in training the scored voxels, the same for truth, prediction and fakes.
            num_groups: groups of equally many scenes, all with the same sites (see ``repeated_sites``), that are
                scored as in forward passes of their own: in training mode each is normalized by its own statistics,
                and the running ones are updated by the first group, then by the second, and so on.

        Raises:
            ValueError: another number of channels, another grid than the configuration's, or scenes or sites that do
                not make ``num_groups`` equal groups.
        """
        if sites is None:
            expected = (self.embed.in_channels, *self.grid_shape)
            if volume.ndim != 5 or tuple(volume.shape[1:]) != expected:
                raise ValueError(f"volume: expected [B, {', '.join(map(str, expected))}], found {list(volume.shape)}")
            sites = full_sites(volume.shape[0], self.grid_shape, volume.device)
            volume = sites.gather(volume)
        elif sites.spatial_shape != tuple(self.grid_shape):
            raise ValueError(f"sites: expected sites of the grid {tuple(self.grid_shape)}, found {sites.spatial_shape}")
        elif tuple(volume.shape) != (len(sites), self.embed.in_channels):
            raise ValueError(
                f"volume: expected features {[len(sites), self.embed.in_channels]} at the sites, "
                f"found {list(volume.shape)}"
            )
        if num_groups < 1 or sites.batch_size % num_groups or len(sites) % num_groups:
            raise ValueError(
                f"num_groups: expected a divisor of {sites.batch_size} scenes with {len(sites)} sites, "
                f"found {num_groups}"
            )
        with recipes_kept(self.keeps_recipes):
            features, here = self.embed(volume), sites
            for block in self.blocks:
                features, here = block(features, here, num_groups=num_groups)
            flat = here.densify(features).flatten(1)
            scores: Tensor = self.score(torch.relu(self.hidden(flat)))
        return scores
