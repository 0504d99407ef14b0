"""Frozen encoders: Figure 2 trains the decoder alone."""

from torch import nn

ENCODERS = ("image_encoder", "label_map_stem", "tsdf_encoder")
"""Names of the encoders in the state dict of a network, which has at most two of them."""


def encoders_of(network: nn.Module) -> list[nn.Module]:
    """The encoders of a sparse or dense network."""
    return [module for name, module in network.named_children() if name in ENCODERS]


def freeze_encoders(network: nn.Module) -> None:
    """The encoders get no gradients and stay in evaluation mode until ``train`` is called."""
    for encoder in encoders_of(network):
        encoder.requires_grad_(False).eval()
