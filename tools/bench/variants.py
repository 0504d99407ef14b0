"""What tools/bench_model.py measures: the networks, how a step of each is run, and the figures of one variant."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from bench.dense_reference.network import DenseAMMNet, DenseDiscriminator, DensePrediction, set_dense_recompute
from bench.measurement import (
    MIB,
    Allocations,
    KeptMemory,
    counted_layers,
    held_mebibytes,
    summed,
)
from torch import Tensor, nn

from ammnet_sparse.config import Config, ModelConfig, TrainingConfig, config_from_dict
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.ammnet import AMMNet, Prediction
from ammnet_sparse.models.discriminator import Discriminator

Net = Literal["sparse", "dense"]
RECOMPUTE_LEVELS = [level for level in get_args(TrainingConfig.model_fields["recompute"].annotation) if level != "off"]
VARIANTS: dict[Net, list[str]] = {
    "sparse": ["plain", "graphs", *(f"recompute_{level}" for level in RECOMPUTE_LEVELS)],
    "dense": ["plain", "channels_last", "recompute_blocks", "compiled"],
}
APART = ("label map stem", "discriminator")
"""Groups that the figure for the 3D network leaves out."""

_GROUPS = {
    "label_map_stem": "label map stem",
    "tsdf_encoder.stem": "TSDF encoder, stem",
    "tsdf_encoder.stage": "TSDF encoder, stages",
    "tsdf_encoder.state": "TSDF encoder, stages",
    "tsdf_encoder": "TSDF encoder, up",
    "decoder.modulation1": "M1",
    "decoder.stage": "decoder, stages",
    "decoder.state": "decoder, stages",
    "decoder.tsdf_down": "T2",
    "decoder.tsdf_up": "T3",
    "decoder.modulation2": "M2",
    "decoder.modulation3": "M3",
    "decoder.dropout": "classifier",
    "decoder.classifier": "classifier",
    "decoder": "decoder, up",
    "discriminator": "discriminator",
}


_PRECISIONS = {"float32": False, "float16": "fp16", "bfloat16": "bf16"}
"""``training.mixed_precision`` by float type."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network, how it saves memory, and its float type: the 16-bit ones by autocast, float16 with a scaled loss."""

    net: Net
    name: str
    dtype: Literal["float32", "float16", "bfloat16"]

    def __str__(self) -> str:
        return f"{self.net} {self.name} {self.dtype}"


def configuration(variant: Variant, *, width: int, grid_shape: Sequence[int], batch_size: int) -> Config:
    """The configuration that trains a variant from 2D label maps."""
    level = variant.name.removeprefix("recompute_") if variant.name.startswith("recompute") else "off"
    model = {"width": width, "grid_shape": list(grid_shape), "image_encoder": "seg2d"}
    training = {
        "batch_size": batch_size,
        "recompute": level,
        "mixed_precision": _PRECISIONS[variant.dtype],
        "cuda_graphs": "auto" if variant.name == "graphs" else False,
    }
    return config_from_dict({"model": model, "training": training}, source="bench_model.py")


class Pair(NamedTuple):
    """A generator and its discriminator, sparse or dense."""

    generator: AMMNet | DenseAMMNet
    discriminator: nn.Module

    @property
    def modules(self) -> nn.ModuleDict:
        """The children of both, named as files of weights name them."""
        return nn.ModuleDict({**dict(self.generator.named_children()), "discriminator": self.discriminator})

    def to(self, device: torch.device) -> "Pair":
        """Moves both networks; they stay the same objects."""
        self.generator.to(device)
        self.discriminator.to(device)
        return self


def build_pair(net: Net, config: ModelConfig) -> Pair:
    """Random networks of a configuration."""
    if net == "sparse":
        return Pair(AMMNet(config), Discriminator(config))
    return Pair(DenseAMMNet(config), DenseDiscriminator(config))


def build(variant: Variant, config: Config, device: torch.device) -> Pair:
    """The networks of a variant with random weights."""
    torch.manual_seed(0)
    pair = build_pair(variant.net, config.model)
    if isinstance(pair.generator, AMMNet) and isinstance(pair.discriminator, Discriminator):
        pair.generator.set_recompute(config.training.recompute)
        pair.discriminator.set_recompute(config.training.recompute)
    else:
        set_dense_recompute(pair.modules, variant.name == "recompute_blocks")
        if is_channels_last(variant, device):
            for module in pair.modules.modules():
                if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                    module.to(memory_format=torch.channels_last_3d)  # the rest follows its weights
    pair.to(device)
    if variant.name == "compiled":
        for module in (pair.generator, pair.discriminator):
            module.compile(dynamic=False)
    return pair


def is_channels_last(variant: Variant, device: torch.device) -> bool:
    """The dense reference at its best: on a GPU it recomputes with channels last too."""
    return variant.net == "dense" and (
        variant.name == "channels_last" or (variant.name == "recompute_blocks" and device.type == "cuda")
    )


def group_of(layer: str) -> str:
    """The group that a layer is reported in."""
    return next((group for prefix, group in _GROUPS.items() if layer.startswith(prefix)), "inputs")


def count(net: Net, config: Config, batches: Sequence[Batch]) -> dict[str, float]:
    """Multiply-accumulates per sample, by group, of a forward pass of both networks at ``config``'s width.

    What a layer joins does not depend on channels: a narrow network runs, the wide one only says how many channels
    each layer has.
    """
    with torch.device("meta"):
        wide = build_pair(net, config.model).modules
    narrow_model = config.model.model_copy(update={"width": 4, "stem_widths": (1, 1), "discriminator_width": 4})
    narrow = build_pair(net, narrow_model)
    # All frames are alike to the dense network.
    frames = batches if net == "sparse" else batches[:1]
    with torch.no_grad(), counted_layers(narrow.modules) as counts:
        for batch in frames:
            _score(narrow, batch, narrow.generator(batch.to("cpu")))
    samples = sum(batch.batch_size for batch in frames)
    groups = summed(counts.multiplications(wide), group_of=group_of)
    return {group: value / samples for group, value in groups.items()}


def _score(pair: Pair, batch: Batch, prediction: Any) -> Tensor:
    """The discriminator's scores of a prediction, as in the generator's step."""
    if isinstance(pair.generator, AMMNet) and isinstance(pair.discriminator, Discriminator):
        scores: Tensor = pair.discriminator(prediction.voxel_logits, prediction.sites)
        return scores
    mask = batch.scored_mask.view(batch.batch_size, 1, *batch.grid_shape)
    dense_scores: Tensor = pair.discriminator(prediction.logits * mask)
    return dense_scores


def measure_saved(variant: Variant, config: Config, batches: Sequence[Batch], device: torch.device) -> dict[str, Any]:
    """MiB per sample that a forward pass keeps for the backward pass, as keys of a row."""
    pair = build(variant, config, device)
    generator: list[KeptMemory] = []
    discriminator: list[KeptMemory] = []
    frames = batches if variant.net == "sparse" else batches[:1]
    for batch in frames:
        batch = batch.to(device)
        autocast = torch.autocast(device.type, torch.float16, enabled=variant.dtype == "float16")
        with autocast, Allocations(pair.modules) as allocations:
            prediction = pair.generator(batch)
        generator.append(allocations.kept(_outputs(prediction)))
        with autocast, Allocations(pair.discriminator) as allocations:
            scores = _score(pair, batch, prediction)
        discriminator.append(allocations.kept([scores]))
        del prediction, scores, allocations
    samples = sum(batch.batch_size for batch in frames)

    def mean(sums: Iterator[Mapping[str, int]]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for values in sums:
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value / samples / MIB
        return {name: round(value, 2) for name, value in totals.items()}

    return {
        "saved_mib_per_sample": mean({"": kept.num_bytes()} for kept in generator)[""],
        "saved_by_group_mib": mean(summed(kept.by_layer(), group_of=group_of) for kept in generator),
        "saved_indices_mib": mean({"": kept.num_bytes("indices")} for kept in generator)[""],
        "saved_copies_of_weights_mib": round(generator[0].num_bytes("weights") / MIB, 2),
        "saved_in_discriminator_mib": mean({"": kept.num_bytes()} for kept in discriminator)[""],
    }


def _outputs(prediction: Prediction | DensePrediction) -> list[Tensor]:
    if isinstance(prediction, Prediction):
        return [value for value in (prediction.voxel_logits, prediction.class_logits_2d) if value is not None]
    return [value for value in (prediction.logits, prediction.logits_2d) if value is not None]


def static_mebibytes(config: Config) -> float:
    """Weights, and of trained ones gradients and AdamW's two moments, in float32; generator and discriminator."""
    with torch.device("meta"):
        modules = build_pair("sparse", config.model).modules
    return sum(value.numel() * (16 if value.requires_grad else 4) for value in modules.parameters()) / MIB


@contextlib.contextmanager
def memory_freed(device: torch.device) -> Iterator[None]:
    """Frees the allocator's unused memory at the end, so that one variant does not limit the next."""
    try:
        yield
    finally:
        held_mebibytes(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
