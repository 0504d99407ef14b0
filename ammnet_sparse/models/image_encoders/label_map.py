"""The label map as 2D input: a stem on the class of each voxel's mapped pixel, one-hot."""

from typing import ClassVar

import torch
from torch import Tensor

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import UNMAPPED
from ammnet_sparse.ops import one_hot_sites
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


def label_map_features(batch: Batch, sites: SiteSet, *, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, num_classes]: one-hot 2D class of each site's mapped pixel, zeros where no pixel maps.

    Raises:
        ValueError: a batch without label maps; on the CPU also classes out of range.
    """
    if batch.label_map is None:
        raise ValueError(
            "batch.label_map: the model reads 2D label maps (image_encoder: seg2d), found none; "
            "give the set a Seg2D folder or use a model with an image encoder"
        )
    pixel = batch.mapping.flatten().index_select(0, sites.linear).long()
    num_pixels = batch.label_map.shape[1] * batch.label_map.shape[2]
    linear = (sites.batch_index * num_pixels + pixel).masked_fill_(pixel < 0, UNMAPPED)
    try:
        return one_hot_sites(batch.label_map.flatten(1), linear, num_classes, dtype)
    except IndexError as error:
        names = ", ".join(batch.frame_ids) or "(unnamed)"
        raise ValueError(
            f"batch.label_map, frames {names}: expected classes below num_label_map_classes {num_classes} ({error})"
        ) from error
