"""Fusion of modalities: formulas, the gradients of Table 5's variants, and the fusions that read the whole volume."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.models.fusion import CBAM, Concatenation, Highway, SqueezeExcitation, build_fusion
from ammnet_sparse.sparse.sites import SiteSet, full_sites

WIDTH = 8
SHAPE = (4, 3, 5)
KINDS = ("modulation", "add", "concat", "senet", "cbam", "highway")


def some_sites(batch_size: int = 2) -> SiteSet:
    """A third of the cells, and none in the last sample."""
    cells = SHAPE[0] * SHAPE[1] * SHAPE[2]
    chosen = torch.rand(batch_size * cells, generator=torch.Generator().manual_seed(1)) < 0.33
    chosen[-cells:] = False
    return SiteSet(batch_size, SHAPE, chosen.nonzero().squeeze(1))


def random_pair(rows: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = [torch.randn(rows, WIDTH, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    return pair[0], pair[1]


def value_and_gradients(gradient: str) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
    """The result, and gradients of features, TSDF features and weights."""
    sites = some_sites()
    torch.manual_seed(3)
    fusion = build_fusion("modulation", width=WIDTH, gradient=gradient).double()  # type: ignore[arg-type]
    features, tsdf = random_pair(len(sites))
    out = fusion(features, tsdf, sites=sites)
    inputs = (features, tsdf, *fusion.parameters())
    of_features, of_tsdf, *of_weights = torch.autograd.grad((out * upstream_of(out)).sum(), inputs, allow_unused=True)
    return out.detach(), of_features, of_tsdf, tuple(of_weights)


def upstream_of(out: Tensor) -> Tensor:
    return torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(4))


def test_gradient_only_has_the_value_of_addition_and_the_gradient_of_modulation() -> None:
    value, *gradients = value_and_gradients("gradient_only")
    features, tsdf = random_pair(value.shape[0])
    torch.testing.assert_close(value, (features + tsdf).detach())
    _, *expected = value_and_gradients("full")
    torch.testing.assert_close(gradients, expected)


def test_fusion_only_has_the_value_of_modulation_and_the_gradient_of_addition() -> None:
    value, to_features, to_tsdf, to_weights = value_and_gradients("fusion_only")
    expected, *_, expected_to_weights = value_and_gradients("full")
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(to_features, upstream_of(value))
    torch.testing.assert_close(to_tsdf, upstream_of(value))
    torch.testing.assert_close(to_weights, expected_to_weights)
    assert all(gradient.abs().max() > 0 for gradient in to_weights)


def test_detached_stops_the_gradient_into_the_tsdf_features_only() -> None:
    value, to_features, to_tsdf, _ = value_and_gradients("detached")
    expected, expected_to_features, *_ = value_and_gradients("full")
    assert to_tsdf is None
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(to_features, expected_to_features)


def test_addition_concatenation_and_highway_follow_their_formulas() -> None:
    sites = some_sites()
    features, tsdf = random_pair(len(sites))
    torch.testing.assert_close(build_fusion("add", width=WIDTH)(features, tsdf, sites=sites), features + tsdf)
    both = torch.cat([features, tsdf], dim=1)
    concatenation = Concatenation(WIDTH).double()
    expected = both @ concatenation.conv.weight[:, :, 0, 0, 0].T + concatenation.conv.bias
    torch.testing.assert_close(concatenation(features, tsdf, sites=sites), expected)
    highway = Highway(WIDTH).double()
    gate = torch.sigmoid(both @ highway.gate.weight[:, :, 0, 0, 0].T + highway.gate.bias)
    torch.testing.assert_close(highway(features, tsdf, sites=sites), gate * features + (1 - gate) * tsdf)


def test_squeeze_excitation_averages_over_the_sites_of_each_sample() -> None:
    sites = some_sites(3)
    fusion = SqueezeExcitation(WIDTH).double()
    features, tsdf = random_pair(len(sites))
    found = fusion(features, tsdf, sites=sites)
    for sample in range(2):
        rows = sites.batch_index == sample
        added = (features + tsdf)[rows]
        gate = torch.sigmoid(fusion.excite(F.relu(fusion.squeeze(added.mean(dim=0)))))
        torch.testing.assert_close(found[rows], added * gate)


def test_cbam_on_every_cell_is_its_dense_form() -> None:
    sites = full_sites(2, SHAPE, torch.device("cpu"))
    fusion = CBAM(WIDTH).double()
    features, tsdf = random_pair(len(sites))
    volume = sites.densify(features + tsdf)

    def perceptron(values: Tensor) -> Tensor:
        return fusion.excite(F.relu(fusion.squeeze(values)))

    attention = perceptron(volume.mean(dim=(2, 3, 4))) + perceptron(volume.amax(dim=(2, 3, 4)))
    volume = volume * torch.sigmoid(attention)[:, :, None, None, None]
    maps = torch.stack([volume.mean(dim=1), volume.amax(dim=1)], dim=1)
    volume = volume * torch.sigmoid(F.conv3d(maps, fusion.spatial.weight, padding=3))
    torch.testing.assert_close(sites.densify(fusion(features, tsdf, sites=sites)), volume)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_whole_volume_tells_the_truth(kind: str) -> None:
    sites = some_sites()
    torch.manual_seed(0)
    fusion = build_fusion(kind, width=WIDTH).double()
    features, tsdf = random_pair(len(sites))
    first = features[:1].detach()
    changed = torch.cat([first, features[1:].detach() + 1])
    before = fusion(features, tsdf, sites=sites)[0]
    after = fusion(changed, tsdf, sites=sites)[0]
    assert fusion.reads_whole_volume == (kind in ("senet", "cbam"))
    assert torch.equal(before, after) != fusion.reads_whole_volume


def test_unknown_kinds_and_meaningless_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="transformer"):
        build_fusion("transformer", width=WIDTH)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="modulation_gradient"):
        build_fusion("add", width=WIDTH, gradient="detached")
