"""The sparse network: which voxels it computes and keeps, the others' values, and what it refuses."""

import dataclasses
import gc
import weakref
from typing import Any, get_args

import pytest
import torch
from bench.measurement import Allocations

import ammnet_sparse
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import EMPTY_LABEL
from ammnet_sparse.models import ammnet
from ammnet_sparse.models.ammnet import EMPTY_LOGIT, AMMNet, Prediction, SitePlan, not_free_mask, plan_sites
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.sparse.blocks import RecomputeLevel
from ammnet_sparse.sparse.convolutions import use_backend
from ammnet_sparse.sparse.sites import SiteSet, full_sites, sites_from_mask
from tests.models.scenes import GRID, assert_near, small_config, some_scene, unsettle

CPU = torch.device("cpu")


def some_network(dtype: torch.dtype = torch.float64, **changes: Any) -> AMMNet:
    torch.manual_seed(0)
    network = AMMNet(small_config(**changes)).to(dtype)
    unsettle(network)
    return network


def some_discriminator(dtype: torch.dtype = torch.float32, **changes: Any) -> Discriminator:
    torch.manual_seed(1)
    discriminator = Discriminator(small_config(**changes)).to(dtype)
    unsettle(discriminator)
    return discriminator


def plan_of(batch: Batch, voxels: SiteSet) -> SitePlan:
    return SitePlan(plan_sites(batch, None, small_config()).encoder, voxels)


@pytest.mark.parametrize("voxels", ["scored", "not_free"])
@pytest.mark.parametrize("changes", [{}, {"sites": "dense"}, {"inputs": "tsdf"}, {"fusion": "cbam"}], ids=str)
def test_voxels_have_the_same_logits_when_all_are_computed(voxels: Any, changes: dict[str, Any]) -> None:
    network = some_network(**changes).eval()
    batch = some_scene(2)
    with torch.no_grad():
        everywhere = network(batch, voxels="all")
        prediction = network(batch, voxels=voxels)
    mask = batch.scored_mask if voxels == "scored" else not_free_mask(batch)
    wanted = mask.view(2, 1, *GRID).expand(-1, 12, -1, -1, -1)
    assert 0.05 < mask.double().mean() < 0.95
    assert everywhere.sites.is_full
    assert_near(prediction.logits[wanted], everywhere.logits[wanted], tolerance=1e-12, name="logits")
    if voxels == "not_free":
        free = ~mask.view(2, *GRID)
        assert (everywhere.labels[free] != EMPTY_LABEL).any()
        assert (prediction.labels[free] == EMPTY_LABEL).all()
        assert (prediction.probabilities[:, EMPTY_LABEL][free] > 0.999).all()


def test_gradients_do_not_depend_on_voxels_outside_the_loss() -> None:
    batch = some_scene(2)
    chosen = batch.scored_mask.flatten()
    gradients = []
    for voxels in ("scored", "all"):
        network = some_network().eval()
        prediction = network(batch, voxels=voxels)
        logits = prediction.voxel_logits[chosen] if voxels == "all" else prediction.voxel_logits
        logits.square().sum().backward()
        gradients.append({name: value.grad for name, value in network.named_parameters() if value.grad is not None})
    found, expected = gradients
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(found[name], value, tolerance=1e-10, name=name)


@pytest.mark.parametrize("voxels", ["not_free", "all"])
def test_chunks_change_nothing(voxels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = some_network().eval()
    batch = some_scene(2)
    expected = network(batch, voxels=voxels)  # with gradients: in one piece
    monkeypatch.setattr(ammnet, "CHUNK_SIZE", 500)
    with torch.no_grad():
        found = network(batch, voxels=voxels)
    assert torch.equal(found.sites.linear, expected.sites.linear)
    assert_near(found.voxel_logits, expected.voxel_logits, tolerance=1e-12, name="logits")


def test_training_computes_the_scored_voxels_and_evaluation_all_that_may_be_occupied() -> None:
    network = some_network()
    batch = some_scene(2)
    expected = {True: batch.scored_mask, False: not_free_mask(batch)}
    for is_training, mask in expected.items():
        prediction = network.train(is_training)(batch)
        assert torch.equal(prediction.sites.linear, mask.flatten().nonzero().squeeze(1))
    unlabeled = dataclasses.replace(batch, label=None)
    prediction = network(unlabeled, voxels="scored")
    assert torch.equal(prediction.sites.linear, batch.label_weight.flatten().nonzero().squeeze(1))


def test_voxels_that_were_not_computed_are_empty() -> None:
    sites = SiteSet(2, (2, 1, 2), torch.tensor([1, 6]))
    voxel_logits = torch.tensor([[0.0, 3.0, 1.0], [0.5, 0.0, 2.0]], requires_grad=True)
    prediction = Prediction(voxel_logits, sites)
    assert prediction.logits.shape == (2, 3, 2, 1, 2) and prediction.logits.is_contiguous()
    assert prediction.logits[0, :, 0, 0, 1].tolist() == [0.0, 3.0, 1.0]
    assert prediction.logits[1, :, 1, 0, 0].tolist() == [0.5, 0.0, 2.0]
    others = torch.ones(2, 2, 1, 2, dtype=torch.bool)
    others[0, 0, 0, 1] = others[1, 1, 0, 0] = False
    assert (prediction.logits.permute(0, 2, 3, 4, 1)[others] == torch.tensor([EMPTY_LOGIT, 0.0, 0.0])).all()
    assert prediction.labels.dtype == torch.uint8
    assert prediction.labels.tolist() == [[[[0, 1]], [[0, 0]]], [[[0, 0]], [[2, 0]]]]
    assert torch.equal(prediction.logits.argmax(dim=1), prediction.labels.long())
    assert prediction.logits_2d is None
    (gradient,) = torch.autograd.grad(prediction.logits.sum(), voxel_logits)
    assert torch.equal(gradient, torch.ones(2, 3))


def test_frozen_encoders_keep_weights_and_statistics() -> None:
    network = some_network(freeze_encoders=True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(some_scene(2)).voxel_logits.square().mean().backward()
    learns = {name.split(".")[0] for name, value in network.named_parameters() if value.grad is not None}
    assert learns == {"decoder"}
    changed = {
        name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"decoder"}


def test_a_batch_frees_its_sites() -> None:
    """Site sets and everything derived from them are freed with their batch, without the garbage collector."""
    network, discriminator = some_network(torch.float32), some_discriminator()
    batch = some_scene(2)

    def step() -> "list[weakref.ref[SiteSet]]":
        sites = sites_from_mask(batch.scored_mask.view(2, *GRID))
        prediction = network(batch, voxels=plan_of(batch, sites))
        scores = discriminator(prediction.voxel_logits, sites)
        (prediction.voxel_logits.square().mean() + scores.mean()).backward()
        kept = [value for value in sites._derived.values() if isinstance(value, SiteSet)]
        assert kept
        return [weakref.ref(entry) for entry in (sites, *kept)]

    half, quarter = (full_sites(2, (GRID[0] // by, GRID[1] // by, GRID[2] // by), CPU) for by in (2, 4))
    for backend in ("gather", "dense"):
        with use_backend(backend):
            step()
            cached = len(half._derived), len(quarter._derived)
            gc.collect()
            gc.disable()
            try:
                assert [reference() for reference in step() if reference() is not None] == []
            finally:
                gc.enable()
            assert (len(half._derived), len(quarter._derived)) == cached


def test_training_works_after_a_prediction_in_inference_mode() -> None:
    grid = (12, 12, 24)  # of this test alone, so that the full sites are made in inference mode
    network = some_network(torch.float32, grid_shape=grid, fusion="cbam", sites="dense")
    batch = some_scene(2, grid=grid)
    for backend in ("gather", "dense"):
        with use_backend(backend):
            with torch.inference_mode():
                network.eval()(batch)
            network.train()(batch).voxel_logits.sum().backward()


def test_batches_and_arguments_that_do_not_fit_are_refused() -> None:
    network = some_network(torch.float32)
    batch = some_scene(2)
    reads_images = some_network(torch.float32, image_encoder="resnet50", freeze_image_encoder=False)
    for refused, name, changed in (
        (network, "batch.tsdf", some_scene(1, grid=(12, 12, 24))),
        (network, "batch.label_map", dataclasses.replace(batch, label_map=None)),
        (reads_images, "batch.image", dataclasses.replace(batch, image=None)),
        (network, "0000, 0001", dataclasses.replace(batch, mapping=torch.full_like(batch.mapping, -1))),
        (network, "0000, 0001", dataclasses.replace(batch, label_weight=torch.zeros_like(batch.label_weight))),
    ):
        with pytest.raises(ValueError, match=name):
            refused(changed)
    for voxels in ("score", plan_of(batch, full_sites(1, GRID, CPU))):
        with pytest.raises(ValueError, match="voxels"):
            network(batch, voxels=voxels)


def test_features_and_sites_that_do_not_fit_the_discriminator_are_refused() -> None:
    discriminator, sites = some_discriminator(), full_sites(1, GRID, CPU)
    for shape in ((6912, 11), (5, 12), (1, 12, *GRID)):  # the last: logits of every voxel
        with pytest.raises(ValueError, match="features"):
            discriminator(torch.zeros(shape), sites)
    with pytest.raises(ValueError, match="sites"):
        discriminator(torch.zeros(2 * 12 * 12 * 24, 12), full_sites(2, (12, 12, 24), CPU))
    with pytest.raises(TypeError, match="sites"):
        discriminator(torch.zeros(6912, 12), None)  # type: ignore[arg-type]


def test_the_package_offers_the_network_by_name() -> None:
    assert ammnet_sparse.AMMNet is AMMNet and ammnet_sparse.Prediction is Prediction
    assert dir(ammnet_sparse) == sorted(ammnet_sparse.__all__)
    assert all(getattr(ammnet_sparse, name) is not None for name in dir(ammnet_sparse))
    with pytest.raises(AttributeError, match="AMMNetwork"):
        _ = ammnet_sparse.AMMNetwork  # type: ignore[attr-defined]


def test_every_level_of_recomputation_keeps_less() -> None:
    batch = some_scene(2)
    kept = []
    for level in get_args(RecomputeLevel):
        network = some_network(dtype=torch.float32).train()
        network.set_recompute(level)
        network(batch)  # fills caches of the process
        with Allocations(network) as allocations:
            logits = network(batch).voxel_logits
        kept.append(allocations.kept([logits]).num_bytes())
        logits.sum().backward()
    assert kept == sorted(kept, reverse=True)
    off, elementwise, *_ = kept
    assert elementwise < 0.65 * off


def test_predictions_in_bfloat16_are_nearly_those_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and training stay float32; auto depends on what the CPU multiplies."""
    network, batch = some_network(torch.float32).eval(), some_scene(2)
    with torch.no_grad():
        expected = network(batch).probabilities
        network.precision = "bfloat16"
        found = network(batch)
        assert found.voxel_logits.dtype == torch.bfloat16
        assert 0 < (found.probabilities - expected).abs().mean() < 0.01
        for multiplies_it, dtype in ((True, torch.bfloat16), (False, torch.float32)):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=multiplies_it: answer)
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
            network.precision = "auto"
            assert network(batch).voxel_logits.dtype == dtype
    assert network.train()(batch).voxel_logits.dtype == torch.float32
    network.eval().precision = "float8"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="precision"):
        network(batch)
