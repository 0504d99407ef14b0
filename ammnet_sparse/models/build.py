"""Builds the networks of a configuration, randomly initialized; no file is read and nothing is downloaded.

The weights of both networks follow from torch's random state: generator first, then discriminator, as in a run.
"""

from typing import NamedTuple

from ammnet_sparse.config import Fusion as FusionKind
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models import dense, dense_blocks
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.decoder import Decoder
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.fusion import ModulationGradient
from ammnet_sparse.models.image_branches import ColorImageBranch, ImageBranch, LabelMapBranch
from ammnet_sparse.models.image_encoders import build_image_encoder
from ammnet_sparse.models.inputs import STATE_CHANNELS
from ammnet_sparse.models.tsdf_encoder import TSDFEncoder
from ammnet_sparse.sparse.blocks import Stem


def build_generator(config: ModelConfig) -> AMMNet:
    """The network that completes scenes."""
    # Without the TSDF, hit voxels are all of the input.
    state_channels = STATE_CHANNELS if config.sites == "sparse" and config.inputs != "image" else 0
    image_branch = _image_branch(config, stem=Stem)
    tsdf_encoder = None
    if config.inputs != "image":
        tsdf_encoder = TSDFEncoder(
            config.width,
            stem_widths=config.stem_widths,
            dropout=config.encoder_dropout,
            dropout_kind=config.dropout_kind,
            state_channels=state_channels,
        )
    fusions = _fusions(config)
    decoder = Decoder(
        config.width,
        num_classes=config.num_classes,
        dropout=config.decoder_dropout,
        state_channels=state_channels,
        fusion1=fusions.first,
        fusion2=fusions.second,
        fusion3=fusions.third,
        gradient=fusions.gradient,
    )
    return AMMNet(image_branch, tsdf_encoder, decoder, config=config)


def build_discriminator(config: ModelConfig) -> Discriminator:
    """The network that distinguishes true scenes from others."""
    return Discriminator(config.num_classes, width=config.discriminator_width, grid_shape=config.grid_shape)


def build_dense_generator(config: ModelConfig) -> dense.DenseAMMNet:
    """``build_generator``'s dense counterpart; its state dict has the same names, but no state projections."""
    image_branch = _image_branch(config, stem=dense_blocks.Stem)
    tsdf_encoder = None
    if config.inputs != "image":
        tsdf_encoder = dense.TSDFEncoder(
            config.width,
            stem_widths=config.stem_widths,
            dropout=config.encoder_dropout,
            dropout_kind=config.dropout_kind,
        )
    fusions = _fusions(config)
    decoder = dense.Decoder(
        config.width,
        num_classes=config.num_classes,
        dropout=config.decoder_dropout,
        fusion1=fusions.first,
        fusion2=fusions.second,
        fusion3=fusions.third,
        gradient=fusions.gradient,
    )
    return dense.DenseAMMNet(image_branch, tsdf_encoder, decoder, config=config)


def build_dense_discriminator(config: ModelConfig) -> dense.Discriminator:
    """``build_discriminator``'s dense counterpart, of the same names."""
    return dense.Discriminator(config.num_classes, width=config.discriminator_width, grid_shape=config.grid_shape)


class _Fusions(NamedTuple):
    first: FusionKind | None
    second: FusionKind | None
    third: FusionKind | None
    gradient: ModulationGradient


def _fusions(config: ModelConfig) -> _Fusions:
    """The decoder's fusions: M1 joins two inputs (off: addition, eq. 1), M2 and M3 need the TSDF features."""
    reads_tsdf = config.inputs != "image"
    if config.inputs != "both":
        first: FusionKind | None = None
    else:
        first = config.fusion if config.modulation1 else "add"
    return _Fusions(
        first,
        config.fusion if config.modulation2 and reads_tsdf else None,
        config.fusion if config.modulation3 and reads_tsdf else None,
        config.modulation_gradient if config.modulation1 else "full",
    )


def _image_branch(config: ModelConfig, *, stem: type[Stem] | type[dense_blocks.Stem]) -> ImageBranch | None:
    if config.inputs == "tsdf":
        return None
    if config.image_encoder == "seg2d":
        classes = config.num_label_map_classes
        return LabelMapBranch(stem(classes, config.stem_widths, out_channels=config.width), num_classes=classes)
    encoder = build_image_encoder(
        kind=config.image_encoder,
        width=config.width,
        num_classes=config.num_classes,
        dropout=config.head_dropout,
        dropout_kind=config.dropout_kind,
        head_width=config.head_width,
        is_frozen=config.freeze_image_encoder,
    )
    return ColorImageBranch(encoder, kind=config.image_encoder)
