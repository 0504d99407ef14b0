"""Scores and loss of validation: of one forward each batch, over all voxels of the set."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.evaluation.metrics import evaluate
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.training.validation import validate
from tests.training.support import tiny_batch, tiny_config


@pytest.mark.parametrize(("sites", "weights"), [("sparse", None), ("sparse", torch.arange(1.0, 13.0)), ("dense", None)])
def test_loss_is_the_weighted_mean_over_all_scored_voxels(sites: str, weights: Tensor | None) -> None:
    torch.manual_seed(0)
    network = AMMNet(tiny_config(model={"sites": sites, "decoder_dropout": 0.5}).model)
    batches = [tiny_batch((1, 2)), tiny_batch((3,))]
    forwards = []
    network.register_forward_hook(lambda *_: forwards.append(1))
    found = validate(network, batches, label_smoothing=0.2, device=torch.device("cpu"), class_weights=weights)
    assert len(forwards) == 2 and not network.training
    logits, labels = [], []
    with torch.inference_mode():
        for batch in batches:
            assert batch.label is not None
            scored = batch.scored_mask
            logits.append(network(batch, voxels="all").logits.flatten(2).movedim(1, -1)[scored])
            labels.append(batch.label.long()[scored])
        assert found.scores == evaluate(lambda batch: network(batch, voxels="scored").labels, batches)
    expected = F.cross_entropy(torch.cat(logits), torch.cat(labels), weight=weights, label_smoothing=0.2)
    assert found.scene == pytest.approx(float(expected), rel=1e-5)
