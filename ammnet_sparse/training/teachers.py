"""Trained networks that a generator learns from beside the truth (distillation, Hinton et al. 2015)."""

import torch
from torch import Tensor

from ammnet_sparse.config import Config, ConfigError
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.ammnet import SitePlan, plan_sites
from ammnet_sparse.models.weights.loading import load_model


class Teachers:
    """The networks of ``loss.teachers``, unchanged by the training.

    Raises:
        ConfigError: a network of other classes or another grid, or one whose 2D input the frames lack.
        WeightsError: a file that cannot be used.
    """

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self.config = config.model
        self.networks = [load_model(name, sites=self.config.sites, device=device) for name in config.loss.teachers]
        for name, network in zip(config.loss.teachers, self.networks, strict=True):
            network.requires_grad_(False)
            for key in ("grid_shape", "num_classes", "reads_label_map", "reads_image"):
                found, expected = getattr(network.config, key), getattr(self.config, key)
                if found != expected and not (key.startswith("reads_") and not found):
                    raise ConfigError(
                        f"loss.teachers: {name}: expected {key} {expected}, as the trained network, found {found}"
                    )

    @torch.no_grad()
    def probabilities(self, batch: Batch, plan: SitePlan) -> Tensor:
        """[N, num_classes] float32: the mean of the networks' probabilities at the voxels of ``plan``.

        Args:
            plan: the sites of the trained network, shared by teachers whose encoders have the same sites.
        """
        total = torch.zeros((), device=batch.tsdf.device)
        for network in self.networks:
            is_shared = network.config.encoder_band == self.config.encoder_band
            own = plan if is_shared else plan_sites(batch, batch.scored_mask, network.config)
            prediction = network(batch, voxels=own)
            logits = prediction.voxel_logits
            if prediction.sites.is_full and not plan.voxels.is_full:
                logits = logits.index_select(0, plan.voxels.linear)
            total = total + logits.float().softmax(dim=1)
        return total / len(self.networks)
