"""The label map as 2D input: a stem on the class of each voxel's mapped pixel, one-hot."""

from typing import ClassVar

import torch
from torch import Tensor

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.inputs import label_map_features
from ammnet_sparse.sparse.blocks import Stem
from ammnet_sparse.sparse.sites import SiteSet


class LabelMapStem(Stem):
    """Three 3x3x3 convolutions at the encoder sites; there is no image network, hence no 2D logits."""

    name: ClassVar[str] = "label_map_stem"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.num_label_map_classes, config.stem_widths, out_channels=config.width)
        self.num_classes = config.num_label_map_classes

    def features_at(self, batch: Batch, sites: SiteSet, *, dtype: torch.dtype) -> tuple[Tensor, None]:
        """F_R [N, C] at the sites. Raises ValueError for a batch without label maps, or with unfit ones."""
        features: Tensor = self(label_map_features(batch, sites, num_classes=self.num_classes, dtype=dtype), sites)
        return features, None
