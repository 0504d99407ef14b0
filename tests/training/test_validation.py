"""Scores and loss of validation: of one forward each batch, over all voxels of the set."""

import pytest
import torch
import torch.nn.functional as F

from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.evaluation.metrics import evaluate
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.training.validation import validate
from tests.training.support import tiny_batch, tiny_config


@pytest.mark.parametrize("sites", ["sparse", "dense"])
def test_loss_is_the_mean_over_all_scored_voxels(sites: str) -> None:
    torch.manual_seed(0)
    network = AMMNet(tiny_config(model={"sites": sites, "decoder_dropout": 0.5}).model)
    batches = [tiny_batch((1, 2)), tiny_batch((3,))]
    forwards = []
    network.register_forward_hook(lambda *_: forwards.append(1))
    found = validate(network, batches, label_smoothing=0.2, device=torch.device("cpu"))
    assert len(forwards) == 2 and not network.training
    total, voxels = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            assert batch.label is not None
            labels = batch.label.long().masked_fill(~batch.label_weight, IGNORE_LABEL).view(-1, *batch.grid_shape)
            logits = network(batch, voxels="all").logits
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, label_smoothing=0.2, reduction="sum")
            total, voxels = total + float(loss), voxels + int(batch.scored_mask.sum())
        assert found.scores == evaluate(lambda batch: network(batch, voxels="scored").labels, batches)
    assert found.scene == pytest.approx(total / voxels, rel=1e-5)


def test_weighted_loss_is_the_weighted_mean_over_the_set() -> None:
    torch.manual_seed(0)
    network = AMMNet(tiny_config().model)
    batches = [tiny_batch((1, 2)), tiny_batch((3,))]
    weights = torch.arange(1.0, 13.0)
    device = torch.device("cpu")
    found = validate(network, batches, label_smoothing=0.2, device=device, class_weights=weights)
    plain = validate(network, batches, label_smoothing=0.2, device=device)
    logits, labels = [], []
    with torch.inference_mode():
        for batch in batches:
            assert batch.label is not None
            scored = batch.scored_mask
            logits.append(network(batch, voxels="all").logits.flatten(2).movedim(1, -1)[scored])
            labels.append(batch.label.long()[scored])
    expected = F.cross_entropy(torch.cat(logits), torch.cat(labels), weight=weights, label_smoothing=0.2)
    assert found.scene == pytest.approx(float(expected), rel=1e-5)
    assert found.scores == plain.scores and found.scene != pytest.approx(plain.scene, rel=1e-3)
