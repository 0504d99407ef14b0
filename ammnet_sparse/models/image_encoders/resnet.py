"""ResNet-50, whose weights have the same names in torchvision and timm."""

import re

from torch import Tensor, nn

from ammnet_sparse.models.image_encoders.encoder import NUM_STAGES, ImageEncoder


class ResNet50(ImageEncoder):
    """ResNet-50."""

    title = "ResNet backbone"
    stage_widths = (256, 512, 1024, 2048)

    @classmethod
    def build_backbone(cls) -> nn.Module:
        """Without classifier and pooling: timm's ``features_only`` form, whose weights have the same names."""
        import timm

        return timm.create_model("resnet50", pretrained=False, num_classes=0, global_pool="")

    def run_backbone(self, image: Tensor) -> list[Tensor]:
        """The last four of timm's five stages, which include the stem."""
        stages: list[Tensor] = self.backbone.forward_intermediates(  # type: ignore[operator]
            image, indices=NUM_STAGES, intermediates_only=True
        )
        return stages

    def timm_key(self, name: str) -> str | None:
        return name if re.fullmatch(r"(?:conv1|bn1|layer[1-4]\.\d+)\..+", name) else None
