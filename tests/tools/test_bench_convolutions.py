"""The benchmark of the convolutions: its cases, and that all ways compute the same, on sizes that measure nothing."""

from typing import Any

import pytest
import torch

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.sparse.convolutions import SiteConv3d, SiteConvTranspose3d
from tests.models.scenes import some_scene


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    import bench.convolutions as bench_convolutions

    monkeypatch.setattr(bench_convolutions, "load_batch", lambda folder: some_scene(2))
    return bench_convolutions


def test_every_convolution_is_found_and_every_way_computes_the_same(bench: Any) -> None:
    batch = some_scene(2)
    config = ModelConfig(width=4, stem_widths=(2, 4), discriminator_width=4, grid_shape=batch.grid_shape)
    networks = AMMNet(config), Discriminator(config)
    cases = bench.record_cases(*networks, batch=batch)
    layers = {
        name
        for network in networks
        for name, layer in network.named_modules()
        if isinstance(layer, (SiteConv3d, SiteConvTranspose3d))
    }
    assert {name for case in cases for name in case.layers} == layers
    assert {case.kind for case in cases} >= {"3x3x3", "3x3x3 up", "1x1x3 /2", "1x3x1 dil 2"}
    assert {case.kernel_map.is_dense for case in cases} == {True, False}
    for case in cases:
        results = []
        for way in ("gather", "dense") if case.kernel_map.is_dense else ("gather",):
            torch.manual_seed(1)
            results.append(bench.make_step(case, way, dtype=torch.float32)())
        for found in results[1:]:
            for gradient, expected in zip(found, results[0], strict=True):
                torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
