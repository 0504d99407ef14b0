"""The adversarial step of ``training/game.py`` with the dense reference, for tools/bench_model.py.

The same losses of the same inputs, on full volumes: the discriminator reads truth, prediction and fakes as
[B, 12, X, H, Y], zero where nothing is scored.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from bench.dense_reference.network import DenseAMMNet, DensePrediction
from torch import Tensor, nn

from ammnet_sparse.config import Config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL, UNMAPPED
from ammnet_sparse.ops import draw_erase_probability, draw_shuffle, erase_voxels, one_hot_sites, shuffle_categories
from ammnet_sparse.sparse.normalization import unchanged_statistics
from ammnet_sparse.sparse.sites import full_sites
from ammnet_sparse.training.losses import at_least_float32, fake_loss, real_loss
from ammnet_sparse.training.optimization import build_optimizations


class DenseGame:
    """Trains the dense reference a step at a time, as ``AdversarialGame`` does the sparse network."""

    def __init__(
        self,
        generator: DenseAMMNet,
        discriminator: nn.Module,
        config: Config,
        *,
        num_steps: int,
        device: torch.device,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.config = config
        self.generator_optimization, discriminator_optimization = build_optimizations(
            generator, discriminator, config, num_steps=num_steps, device=device
        )
        assert discriminator_optimization is not None
        self.discriminator_optimization = discriminator_optimization

    def step(self, batches: Sequence[Batch], *, seed: int) -> dict[str, Tensor]:
        """One update of each network from the frames of one batch; its losses, detached."""
        (batch,) = batches
        assert batch.label is not None
        truth = batch.label.masked_fill(~batch.scored_mask, IGNORE_LABEL)
        self.generator.train()
        self.discriminator.train()
        with self._autocast(batch):
            prediction = self.generator(batch)
        discriminator_loss = self._update_discriminator(batch, truth, prediction, seed=seed)
        scene_loss = F.cross_entropy(
            at_least_float32(prediction.logits).flatten(2),
            truth.long(),
            ignore_index=IGNORE_LABEL,
            label_smoothing=self.config.loss.label_smoothing,
        )
        loss = scene_loss
        if prediction.logits_2d is not None:
            loss = loss + self.config.loss.weight_2d * self._image_loss(batch, prediction.logits_2d)
        for parameter in self.discriminator_optimization.parameters:
            parameter.requires_grad_(False)
        with unchanged_statistics(self.discriminator):
            with self._autocast(batch):
                scores = self.discriminator(self._scored(batch, prediction))
            adversarial_loss = real_loss(scores)
            self.generator_optimization.backward(loss + self.config.loss.weight_adversarial * adversarial_loss)
        for parameter in self.discriminator_optimization.parameters:
            parameter.requires_grad_(True)
        self.generator_optimization.step()
        return {
            "scene": scene_loss.detach(),
            "adversarial": adversarial_loss.detach(),
            "discriminator": discriminator_loss.detach(),
        }

    def _update_discriminator(self, batch: Batch, truth: Tensor, prediction: DensePrediction, *, seed: int) -> Tensor:
        config = self.config.adversarial
        seed = seed * 64 % 2**63
        probability = draw_erase_probability(batch.batch_size, config.erase_probability, seed, truth.device)
        fakes = [erase_voxels(truth, probability, seed)]
        class_map, probability = draw_shuffle(
            truth,
            num_classes=self.config.model.num_classes,
            probability_range=config.shuffle_probability,
            seed=seed,
        )
        fakes.append(shuffle_categories(truth, class_map, probability, seed))
        score = self.discriminator
        with self._autocast(batch):
            losses = [
                real_loss(score(self._one_hot(batch, truth))),
                fake_loss(score(self._scored(batch, prediction).detach())),
                *(fake_loss(score(self._one_hot(batch, labels))) for labels in fakes),
            ]
        loss = torch.stack(losses).sum()
        self.discriminator_optimization.backward(loss)
        self.discriminator_optimization.step()
        return loss

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.tsdf.device.type, torch.float16, enabled=self.config.training.uses_fp16)

    def _one_hot(self, batch: Batch, labels: Tensor) -> Tensor:
        sites = full_sites(batch.batch_size, batch.grid_shape, labels.device)
        dtype = self.generator.decoder.classifier.weight.dtype
        features = one_hot_sites(labels, sites.linear, self.config.model.num_classes, dtype)
        return sites.densify(features).contiguous()

    def _scored(self, batch: Batch, prediction: DensePrediction) -> Tensor:
        return prediction.logits * batch.scored_mask.view(batch.batch_size, 1, *batch.grid_shape)

    def _image_loss(self, batch: Batch, logits: Tensor) -> Tensor:
        """Over mapped pixels, each against the label of its voxel."""
        assert batch.label is not None
        pixel = batch.mapping.clamp(min=UNMAPPED + 1).long()
        taken = logits.flatten(2).gather(2, pixel[:, None].expand(-1, logits.shape[1], -1))
        labels = batch.label.long().masked_fill(batch.mapping == UNMAPPED, IGNORE_LABEL)
        smoothing = self.config.loss.label_smoothing
        return F.cross_entropy(at_least_float32(taken), labels, ignore_index=IGNORE_LABEL, label_smoothing=smoothing)
