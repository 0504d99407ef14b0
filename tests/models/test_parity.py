"""With every voxel a site, the sparse network is the dense reference: values, gradients and running statistics."""

import dataclasses
import re
from typing import Any, NamedTuple

import pytest
import torch
from bench.dense_reference.network import DenseAMMNet, DenseDiscriminator
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.image_encoders import ENCODERS
from ammnet_sparse.sparse.sites import full_sites
from tests.models.encoders import SmallSegFormer
from tests.models.scenes import assert_near, both, small_config, some_scene, unsettle

BEFORE_NORMALIZATION = re.compile(
    r"(up_half|up_full|tsdf_up|tsdf_down_up)\.conv\.bias|modulation1\.(bias|conv)\.bias|head\.projection\d\.bias"
)
"""Biases that normalization takes out again: their gradient is rounding alone."""


@dataclasses.dataclass
class Results:
    """What is compared, by name."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]


class Pair(NamedTuple):
    """A generator and its discriminator, sparse or dense."""

    generator: AMMNet | DenseAMMNet
    discriminator: nn.Module

    @property
    def modules(self) -> nn.ModuleDict:
        return both(self.generator, self.discriminator)

    def scores(self, volume: Tensor) -> Tensor:
        """Of [B, 12, X, H, Y]."""
        if isinstance(self.generator, DenseAMMNet):
            scores: Tensor = self.discriminator(volume)
            return scores
        sites = full_sites(volume.shape[0], tuple(volume.shape[2:]), volume.device)  # type: ignore[arg-type]
        scores = self.discriminator(sites.gather(volume), sites)
        return scores


def build_pairs(config: ModelConfig, dtype: torch.dtype) -> tuple[Pair, Pair]:
    """The sparse networks on dense sites, and the reference, of the same weights."""
    torch.manual_seed(0)
    reference = Pair(DenseAMMNet(config), DenseDiscriminator(config))
    unsettle(reference.modules)
    network = Pair(AMMNet(config.model_copy(update={"sites": "dense"})), Discriminator(config))
    for part in (network, reference):
        part.modules.load_state_dict(reference.modules.state_dict())
        part.modules.to(dtype)
    return network, reference


def run(pair: Pair, batch: Batch, *, is_training: bool, has_gradients: bool = True, has_scores: bool = True) -> Results:
    """A forward pass of generator and discriminator and the gradients of a sum of all that comes out."""
    pair.generator.train(is_training)
    pair.discriminator.train(is_training)
    torch.manual_seed(1)  # the same dropout masks
    with torch.set_grad_enabled(has_gradients):
        prediction = pair.generator(batch)
        outputs = {"logits": prediction.logits}
        if has_scores:
            outputs["scores"] = pair.scores(prediction.logits)
        if prediction.logits_2d is not None:
            outputs["logits_2d"] = prediction.logits_2d
    if has_gradients:
        generator = torch.Generator().manual_seed(2)
        parts = [
            (value * torch.randn(value.shape, dtype=value.dtype, generator=generator)).mean()
            for value in outputs.values()
        ]
        torch.stack(parts).sum().backward()
    gradients = {name: value.grad for name, value in pair.modules.named_parameters() if value.grad is not None}
    outputs = {name: value.detach() for name, value in outputs.items()}
    return Results(outputs, gradients, dict(pair.modules.named_buffers()))


def assert_parity(
    config: ModelConfig, batch: Batch, *, is_training: bool, has_scores: bool = True, tolerance: float = 1e-8
) -> None:
    network, reference = build_pairs(config, torch.float64)
    found = run(network, batch, is_training=is_training, has_scores=has_scores)
    expected = run(reference, batch, is_training=is_training, has_scores=has_scores)
    assert found.outputs.keys() == expected.outputs.keys()
    assert found.gradients.keys() == expected.gradients.keys()
    for name, value in expected.outputs.items():
        assert_near(found.outputs[name], value, tolerance=tolerance, name=name)
    largest = max(float(value.abs().max()) for value in expected.gradients.values())
    for name, value in expected.gradients.items():
        scale = largest if is_training and BEFORE_NORMALIZATION.search(name) else None
        assert_near(found.gradients[name], value, tolerance=tolerance, name=name, scale=scale)
    for name, value in expected.statistics.items():
        assert_near(found.statistics[name], value, tolerance=tolerance, name=name)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_the_network_equals_the_dense_reference(batch_size: int, is_training: bool) -> None:
    assert_parity(small_config(), some_scene(batch_size), is_training=is_training)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
def test_single_precision_is_enough_on_the_full_grid(batch_size: int, is_training: bool) -> None:
    """Not on a small grid: there the discriminator ends in four cells, whose normalization multiplies rounding."""
    config = small_config(grid_shape=(60, 36, 60), stem_widths=(3, 4))
    batch = some_scene(batch_size, grid=(60, 36, 60))
    network, reference = build_pairs(config, torch.float32)
    found = run(network, batch, is_training=is_training, has_gradients=False)
    expected = run(reference, batch, is_training=is_training, has_gradients=False)
    assert_near(found.outputs["logits"], expected.outputs["logits"], tolerance=1e-4, name="logits")
    torch.manual_seed(3)
    volume = torch.randn_like(expected.outputs["logits"])
    with torch.no_grad():
        scores, expected_scores = network.scores(volume), reference.scores(volume)
    assert_near(scores, expected_scores, tolerance=1e-4, name="scores")


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": "image"},
        {"inputs": "tsdf"},
        {"modulation1": False},
        {"modulation2": False},
        {"modulation3": False},
        {"modulation2": False, "modulation3": False},
        {"fusion": "add"},
        {"fusion": "concat"},
        {"fusion": "senet"},
        {"fusion": "cbam"},
        {"fusion": "highway"},
        {"modulation_gradient": "gradient_only"},
        {"modulation_gradient": "fusion_only"},
        {"modulation_gradient": "detached"},
        {"freeze_encoders": True},
    ],
    ids=lambda changes: ", ".join(f"{key} {value}" for key, value in changes.items()),
)
def test_every_option_equals_the_dense_reference(changes: dict[str, Any]) -> None:
    # The discriminator, the same in all of these, would end in a single cell.
    config = small_config(grid_shape=(12, 12, 12), **changes)
    assert_parity(config, some_scene(2, grid=(12, 12, 12)), is_training=True, has_scores=False)


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "trained"])
def test_a_network_that_reads_images_equals_the_dense_reference(
    is_training: bool, is_frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "segformer_b2", SmallSegFormer)
    config = small_config(image_encoder="segformer_b2", freeze_image_encoder=is_frozen, grid_shape=(12, 12, 12))
    assert_parity(config, some_scene(2, grid=(12, 12, 12)), is_training=is_training, has_scores=False)


def test_segformer_b2_equals_the_dense_reference() -> None:
    config = small_config(image_encoder="segformer_b2", grid_shape=(12, 12, 12))
    assert_parity(config, some_scene(1, grid=(12, 12, 12)), is_training=False, has_scores=False)
