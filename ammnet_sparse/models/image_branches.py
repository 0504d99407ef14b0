"""The 2D branch of a network: its 2D input, and how the features reach the voxels.

A branch is called by its network, sparse or dense. Its trained module is registered in the network under
``name``, the name in files of weights.
"""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.dense_inputs import gather_label_map, project_densely
from ammnet_sparse.models.image_encoders import ImageEncoder
from ammnet_sparse.models.inputs import label_map_features, project_to_sites
from ammnet_sparse.sparse.sites import SiteSet


@dataclasses.dataclass(frozen=True, eq=False)
class BranchFeatures:
    """The output of a branch for the 2D input of a batch.

    Attributes:
        features: F_R [N, C] at the sites, or [B, C, X, H, Y] without sites.
        class_logits: [B, num_classes, rows / 4, columns / 4] of the image; None for label maps.
        image_size: rows and columns of the image; None for label maps.
    """

    features: Tensor
    class_logits: Tensor | None = None
    image_size: tuple[int, int] | None = None


class LabelMapBranch:
    """A stem on the 2D class of each voxel's mapped pixel, one-hot."""

    name: ClassVar[str] = "label_map_stem"

    def __init__(self, stem: nn.Module, *, num_classes: int) -> None:
        self.module = stem
        self.num_classes = num_classes

    def __call__(self, batch: Batch, sites: SiteSet | None, *, dtype: torch.dtype) -> BranchFeatures:
        """Features at ``sites``; None: of every voxel, as a volume. Raises ValueError without label maps."""
        if batch.label_map is None:
            raise ValueError(
                "batch.label_map: the model reads 2D label maps (image_encoder: seg2d), found none; "
                "give the set a Seg2D folder or use a model with an image encoder"
            )
        if sites is None:
            return BranchFeatures(self.module(gather_label_map(batch, num_classes=self.num_classes).to(dtype)))
        one_hot = label_map_features(batch, sites, num_classes=self.num_classes, dtype=dtype)
        return BranchFeatures(self.module(one_hot, sites))


class ColorImageBranch:
    """An image encoder whose features are projected along the mapping.

    Args:
        encoder: from images [B, 3, rows, columns], or the stages of its backbone, to ``ImageFeatures``.
        kind: its name in the configuration, for messages.
    """

    name: ClassVar[str] = "image_encoder"

    def __init__(self, encoder: ImageEncoder, *, kind: str) -> None:
        self.module = encoder
        self.kind = kind

    def __call__(self, batch: Batch, sites: SiteSet | None, *, dtype: torch.dtype) -> BranchFeatures:
        """Features at ``sites``; None: of every voxel, as a volume. Raises ValueError without images or stages."""
        if batch.image_stages is not None:
            encoded = self.module.join_stages([stage.to(dtype) for stage in batch.image_stages])
        elif batch.image is not None:
            encoded = self.module(batch.image.to(dtype))
        else:
            raise ValueError(f"batch.image: image_encoder {self.kind} reads images, found none")
        size = batch.image_shape
        if sites is None:
            features = project_densely(encoded.features, batch)
        else:
            features = project_to_sites(encoded.features, batch, sites, image_size=size)
        return BranchFeatures(features, class_logits=encoded.class_logits, image_size=size)


ImageBranch = LabelMapBranch | ColorImageBranch
