"""The discriminator: groups of scenes in one forward pass against a forward pass for each."""

import copy

import pytest
import torch
from torch import Tensor

from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.sparse.kernel_maps import repeated_sites
from ammnet_sparse.sparse.sites import SiteSet, full_sites, sites_from_mask
from tests.models.scenes import small_config

GRID = (12, 12, 24)
CLASSES = 5


def make_discriminator(recompute: str = "off") -> Discriminator:
    torch.manual_seed(0)
    discriminator = Discriminator(small_config(num_classes=CLASSES, grid_shape=GRID)).double().train()
    discriminator.set_recompute(recompute)
    return discriminator


def make_sites(batch_size: int, *, density: float) -> SiteSet:
    generator = torch.Generator().manual_seed(batch_size)
    return sites_from_mask(torch.rand(batch_size, *GRID, generator=generator) < density)


def gradients_of(discriminator: Discriminator, scores: Tensor, features: list[Tensor]) -> list[Tensor]:
    weights = torch.arange(1.0, len(scores) + 1, dtype=torch.float64)[:, None]
    return list(torch.autograd.grad((scores * weights).sum(), [*features, *discriminator.parameters()]))


@pytest.mark.parametrize("recompute", ["off", "elementwise", "blocks"])
@pytest.mark.parametrize(("batch_size", "density"), [(2, 0.2), (1, 0.2), (2, 1.1)])
def test_groups_are_scored_as_in_forward_passes_one_after_another(
    batch_size: int, density: float, recompute: str
) -> None:
    together = make_discriminator(recompute)
    apart = copy.deepcopy(together)
    sites = make_sites(batch_size, density=density)
    # Unlike one another, or statistics that mix would not show.
    features = [
        (torch.randn(len(sites), CLASSES, dtype=torch.float64) * (group + 1) + group).requires_grad_()
        for group in range(4)
    ]
    found = together(torch.cat(features), repeated_sites(sites, 4), num_groups=4)
    expected = torch.cat([apart(group, sites) for group in features])
    assert found.shape == (4 * batch_size, 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    results = gradients_of(together, found, features), gradients_of(apart, expected, features)
    largest = max(float(value.abs().max()) for value in results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10 * largest)
    buffers = dict(apart.named_buffers())
    for name, value in together.named_buffers():
        torch.testing.assert_close(value, buffers[name], rtol=1e-10, atol=1e-12, msg=name)
    assert {int(value) for name, value in buffers.items() if name.endswith("num_batches_tracked")} == {4}
    together.eval(), apart.eval()
    with torch.no_grad():
        found = together(torch.cat(features), repeated_sites(sites, 4), num_groups=4)
        torch.testing.assert_close(found, torch.cat([apart(group, sites) for group in features]))


def test_scenes_that_make_no_equal_groups_are_refused() -> None:
    discriminator = make_discriminator()
    sites = full_sites(3, GRID, torch.device("cpu"))
    features = torch.zeros(len(sites), CLASSES, dtype=torch.float64)
    for num_groups in (2, 0, 4):
        with pytest.raises(ValueError, match="num_groups"):
            discriminator(features, sites, num_groups=num_groups)
