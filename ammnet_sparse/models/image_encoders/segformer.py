"""SegFormer's Mix Transformer (MiT), and the three sets of names that its weights have.

Those of the published ``mit_b2.pth`` ("published", also in the dense AMMNet checkpoint under ``encoder.``), Hugging
Face's, and timm's.
"""

import re
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ammnet_sparse.models.image_encoders.encoder import NUM_STAGES, ImageEncoder
from ammnet_sparse.models.weights.checks import WeightsError


class SegFormerB2(ImageEncoder):
    """MiT-B2.

    timm has no MiT, but its PVT v2 with MLP ratio 4 throughout is one, the epsilons included: 1e-6 in the layer
    normalizations of blocks and stages, 1e-5 in those after patch embedding and key reduction.

    Attributes:
        depths: blocks per stage.
        num_heads: attention heads per stage.
        reductions: edge in tokens of the square that becomes one key, per stage.
    """

    title = "SegFormer backbone"
    stage_widths = (64, 128, 320, 512)
    depths: ClassVar[tuple[int, int, int, int]] = (3, 4, 6, 3)
    num_heads: ClassVar[tuple[int, int, int, int]] = (1, 2, 5, 8)
    reductions: ClassVar[tuple[int, int, int, int]] = (8, 4, 2, 1)

    @classmethod
    def build_backbone(cls) -> nn.Module:
        from timm.models.pvt_v2 import PyramidVisionTransformerV2

        backbone = PyramidVisionTransformerV2(
            num_classes=0,
            depths=cls.depths,
            embed_dims=cls.stage_widths,
            num_heads=cls.num_heads,
            sr_ratios=cls.reductions,
            mlp_ratios=(4.0,) * NUM_STAGES,
        )
        return cast(nn.Module, backbone)

    def run_backbone(self, image: Tensor) -> list[Tensor]:
        stages: list[Tensor] = self.backbone.forward_intermediates(  # type: ignore[operator]
            image, indices=NUM_STAGES, intermediates_only=True
        )
        return stages

    def timm_key(self, name: str) -> str | None:
        try:
            return published_to_timm(_huggingface_to_published(name))
        except WeightsError:
            pass
        try:
            timm_to_published(name)
        except WeightsError:
            return None
        return name

    @staticmethod
    def joined_weights(tensors: dict[str, Tensor], *, source: str | Path) -> dict[str, Tensor]:
        """Joins Hugging Face's separate key and value layers to the one that MiT has: key rows first."""
        joined = {}
        for name, tensor in tensors.items():
            match = re.fullmatch(r"(.*block\.\d+\.\d+\.attention\.self\.)(key|value)\.(weight|bias)", name)
            if match is None:
                joined[name] = tensor
                continue
            prefix, part, suffix = match.groups()
            partner = f"{prefix}{'value' if part == 'key' else 'key'}.{suffix}"
            if partner not in tensors:
                raise WeightsError(f"{source}: expected {partner} beside {name}, found no such name")
            if tensors[partner].shape != tensor.shape or tensor.ndim == 0:
                raise WeightsError(
                    f"{source}: expected {name} and {partner} of one shape with rows, found {list(tensor.shape)} "
                    f"and {list(tensors[partner].shape)}"
                )
            if part == "key":
                joined[f"{prefix}key_value.{suffix}"] = torch.cat([tensor, tensors[partner]])
        return joined


def published_to_timm(name: str) -> str:
    """timm's name of a SegFormer weight, from that in ``mit_b2.pth`` (without prefix).

    For example ``block3.5.mlp.dwconv.dwconv.weight`` becomes ``stages.2.blocks.5.mlp.dwconv.weight``.
    Inverse: ``timm_to_published``.

    Raises:
        WeightsError: not a name of SegFormer's backbone.
    """
    if match := re.fullmatch(r"patch_embed([1-4])\.((?:proj|norm)\.\w+)", name):
        stage, rest = int(match[1]), match[2]
        return f"patch_embed.{rest}" if stage == 1 else f"stages.{stage - 1}.downsample.{rest}"
    if match := re.fullmatch(r"block([1-4])\.(\d+)\.(.+)", name):
        rest = match[3].replace("mlp.dwconv.dwconv.", "mlp.dwconv.")
        return f"stages.{int(match[1]) - 1}.blocks.{match[2]}.{rest}"
    if match := re.fullmatch(r"norm([1-4])\.(\w+)", name):
        return f"stages.{int(match[1]) - 1}.norm.{match[2]}"
    raise WeightsError(f"{name}: not a name of SegFormer's backbone as published, such as block1.0.attn.q.weight")


def timm_to_published(name: str) -> str:
    """The name in ``mit_b2.pth`` of a SegFormer weight, from timm's; inverse of ``published_to_timm``.

    Raises:
        WeightsError: not a name of timm's SegFormer backbone.
    """
    if match := re.fullmatch(r"patch_embed\.((?:proj|norm)\.\w+)", name):
        return f"patch_embed1.{match[1]}"
    if match := re.fullmatch(r"stages\.([1-3])\.downsample\.((?:proj|norm)\.\w+)", name):
        return f"patch_embed{int(match[1]) + 1}.{match[2]}"
    if match := re.fullmatch(r"stages\.([0-3])\.blocks\.(\d+)\.(.+)", name):
        rest = match[3].replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
        return f"block{int(match[1]) + 1}.{match[2]}.{rest}"
    if match := re.fullmatch(r"stages\.([0-3])\.norm\.(\w+)", name):
        return f"norm{int(match[1]) + 1}.{match[2]}"
    raise WeightsError(f"{name}: not a name of timm's SegFormer backbone, such as stages.0.blocks.0.attn.q.weight")


_HUGGINGFACE_BLOCK = {
    "layer_norm_1": "norm1",
    "attention.self.query": "attn.q",
    "attention.self.key_value": "attn.kv",
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.output.dense": "attn.proj",
    "layer_norm_2": "norm2",
    "mlp.dense1": "mlp.fc1",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    "mlp.dense2": "mlp.fc2",
}
"""Layers of a block (key and value already joined) by their published names."""


def _huggingface_to_published(name: str) -> str:
    """Counts stages from 1 as in the published names; names other than Hugging Face's are returned unchanged."""
    if match := re.fullmatch(r"patch_embeddings\.([0-3])\.(proj|layer_norm)\.(\w+)", name):
        layer = "proj" if match[2] == "proj" else "norm"
        return f"patch_embed{int(match[1]) + 1}.{layer}.{match[3]}"
    if match := re.fullmatch(r"layer_norm\.([0-3])\.(\w+)", name):
        return f"norm{int(match[1]) + 1}.{match[2]}"
    match = re.fullmatch(r"block\.([0-3])\.(\d+)\.(.+)\.(\w+)", name)
    if match and match[3] in _HUGGINGFACE_BLOCK:
        return f"block{int(match[1]) + 1}.{match[2]}.{_HUGGINGFACE_BLOCK[match[3]]}.{match[4]}"
    return name
