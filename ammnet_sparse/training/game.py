"""One step of the adversarial game: the discriminator, then the generator through the updated discriminator."""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ammnet_sparse.config import Config, ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.evaluation.metrics import VoxelCounts
from ammnet_sparse.models.ammnet import AMMNet, Prediction
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.inputs import plan_sites
from ammnet_sparse.ops import draw_erase_probability, draw_shuffle, erase_voxels, one_hot_sites, shuffle_categories
from ammnet_sparse.ops.philox import Stream, uniform, words_of_items
from ammnet_sparse.processes import num_processes, rank, sum_over_processes
from ammnet_sparse.sparse.normalization import unchanged_statistics
from ammnet_sparse.sparse.planning import repeated_sites
from ammnet_sparse.training.losses import (
    class_weights_of,
    discriminator_loss,
    gradient_penalty,
    image_cross_entropy,
    labels_at,
    num_labeled_pixels,
    real_loss,
    scene_cross_entropy,
    scene_lovasz,
    scored_weight,
)
from ammnet_sparse.training.networks import Networks
from ammnet_sparse.training.optimization import Optimization, build_optimizations


@dataclasses.dataclass(frozen=True)
class StepReport:
    """Losses of a step, detached scalars on the device; None for those that the configuration leaves out.

    ``loss`` is the generator's sum with weights; ``discriminator`` the sum of its binary cross-entropies;
    ``gradient_penalty`` is that of ``losses.gradient_penalty``, without its weight; ``counts`` are of the prediction
    that the generator was trained on, with its dropout, augmentation and batch statistics.
    """

    loss: Tensor
    scene: Tensor
    lovasz: Tensor | None
    image: Tensor | None
    adversarial: Tensor | None
    discriminator: Tensor | None
    gradient_penalty: Tensor | None
    generator_gradient_norm: Tensor
    discriminator_gradient_norm: Tensor | None
    counts: VoxelCounts

    def over_processes(self) -> "StepReport":
        """The report over all processes: losses are summed shares, norms are the same in each."""
        if num_processes() == 1:
            return self
        names = ("loss", "scene", "lovasz", "image", "adversarial", "discriminator", "gradient_penalty")
        shares = {name: getattr(self, name) for name in names}
        present = {name: value for name, value in shares.items() if value is not None}
        sums = sum_over_processes(torch.stack([value.double() for value in present.values()]))
        return dataclasses.replace(self, **dict(zip(present, sums, strict=True)), counts=self.counts.over_processes())

    def as_floats(self) -> dict[str, float]:
        """Losses and norms by name, without those left out; waits once for the device."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        present = {name: value.double() for name, value in values.items() if isinstance(value, Tensor)}
        return dict(zip(present, torch.stack(list(present.values())).tolist(), strict=True))


class AdversarialGame:
    """Trains the generator and, if enabled, the discriminator, one step at a time.

    Args:
        generator, discriminator: the networks, on one device.
        config: losses, fakes and precision.
        generator_optimization, discriminator_optimization: their optimizers; the latter is None if and only if
            ``adversarial.enabled`` is false.
    """

    def __init__(
        self,
        generator: AMMNet,
        discriminator: Discriminator,
        config: Config,
        *,
        generator_optimization: Optimization,
        discriminator_optimization: Optimization | None,
    ) -> None:
        if config.adversarial.enabled != (discriminator_optimization is not None):
            raise ValueError("discriminator_optimization: expected an optimization exactly if adversarial.enabled")
        self.generator = generator
        self.discriminator = discriminator
        self.config = config
        self.generator_optimization = generator_optimization
        self.discriminator_optimization = discriminator_optimization
        self.class_weights = class_weights_of(config.loss, next(generator.parameters()).device)
        self._buffers = [*generator.buffers(), *discriminator.buffers()]
        self._buffers_before = [torch.empty_like(buffer) for buffer in self._buffers]

    def undo_statistics(self) -> None:
        """Restores the running statistics from before the last step, whose predictions were not finite.

        Parameters need no restoring: an optimization skips gradients that are not finite.
        """
        with torch.no_grad():
            torch._foreach_copy_(self._buffers, self._buffers_before)

    def step(self, batches: Sequence[Batch], *, seed: int, updates_discriminator: bool = True) -> StepReport:
        """One update of each network from the frames of ``batches``, equally many in each.

        Args:
            seed: draws the fakes, and which targets are flipped.
            updates_discriminator: false leaves the discriminator as it is; the generator still plays against it.

        Raises:
            ValueError: a batch without labels, or with fewer than two scored voxels; names its frames.
        """
        self.generator.train()
        self.discriminator.train()
        with torch.no_grad():
            torch._foreach_copy_(self._buffers_before, self._buffers)
        scenes = [self._scene(batch, index) for index, batch in enumerate(batches)]
        totals = self._totals(batches)
        discriminator_optimization = self.discriminator_optimization if updates_discriminator else None
        if len(scenes) > 1:
            return self._accumulate(scenes, totals, discriminator_optimization, seed=seed)
        (scene,) = scenes
        prediction = self._predict(scene)
        judgment, discriminator_norm = _Judgment(), None
        if discriminator_optimization is not None:
            judgment = self._discriminate(scene, prediction, totals, seed=seed, num_scenes=1)
            discriminator_norm = discriminator_optimization.step()
        losses = self._generate(scene, prediction, totals, num_scenes=1)
        return StepReport(
            **losses._asdict(),
            **judgment._asdict(),
            generator_gradient_norm=self.generator_optimization.step(),
            discriminator_gradient_norm=discriminator_norm,
            counts=scene.count(prediction),
        )

    def _accumulate(
        self,
        scenes: "Sequence[_Scene]",
        totals: "_Totals",
        discriminator_optimization: Optimization | None,
        *,
        seed: int,
    ) -> StepReport:
        """A step of several batches: equal to one batch of all frames, except batch statistics and random draws.

        The generator must be scored by the updated discriminator. So the predictions for the discriminator's step come
        from a first pass without gradients and are recomputed, with the same dropout, in the second.
        """
        judgment, discriminator_norm = _Judgment(), None
        random_states: list[_RandomState] = []
        if discriminator_optimization is not None:
            judged = []
            for scene in scenes:
                random_states.append(_RandomState.of(scene.batch.tsdf.device))
                with torch.no_grad(), unchanged_statistics(self.generator):
                    prediction = self._predict(scene)
                judged.append(self._discriminate(scene, prediction, totals, seed=seed, num_scenes=len(scenes)))
            judgment = _Judgment.sum(judged)
            discriminator_norm = discriminator_optimization.step()
        parts, counts = [], []
        for index, scene in enumerate(scenes):
            if random_states:
                random_states[index].restore()
            prediction = self._predict(scene)
            counts.append(scene.count(prediction))
            parts.append(self._generate(scene, prediction, totals, num_scenes=len(scenes)))
        return StepReport(
            **_Losses.sum(parts)._asdict(),
            **judgment._asdict(),
            generator_gradient_norm=self.generator_optimization.step(),
            discriminator_gradient_norm=discriminator_norm,
            counts=functools.reduce(operator.add, counts),
        )

    def _scene(self, batch: Batch, index: int) -> "_Scene":
        return _Scene(batch, index, config=self.config.model, dtype=self.discriminator.embed.weight.dtype)

    def _totals(self, batches: Sequence[Batch]) -> "_Totals":
        has_image_loss = self.config.model.image_encoder != "seg2d"
        return _Totals.of(batches, has_image_loss=has_image_loss, class_weights=self.class_weights)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.float16, enabled=self.config.training.mixed_precision)

    def _predict(self, scene: "_Scene") -> Prediction:
        with self._autocast(scene.batch.tsdf.device):
            prediction: Prediction = self.generator(scene.batch, voxels=scene.plan)
        return prediction

    def _discriminate(
        self, scene: "_Scene", prediction: Prediction, totals: "_Totals", *, seed: int, num_scenes: int
    ) -> "_Judgment":
        """Adds the discriminator's gradients on one batch; returns its losses, as shares of the step's."""
        assert self.discriminator_optimization is not None
        config = self.config.adversarial
        seed = scene.seed_of(seed)
        fakes = self._fakes(scene, seed=seed)
        predicted = self._scored_features(scene, prediction).detach()
        true, *fake = scene.one_hot(scene.truth, *fakes)
        # The order in which they update the discriminator's running statistics.
        inputs = (true, predicted, *fake)
        sites = repeated_sites(scene.sites, len(inputs))
        # A fake in which nothing was changed is the truth, which must not be called fake.
        all_scenes = torch.ones(len(scene.truth), dtype=torch.bool, device=scene.truth.device)
        is_changed = [(labels != scene.truth).flatten(1).any(dim=1) for labels in fakes]
        with self._autocast(scene.batch.tsdf.device):
            # One forward pass, in which batch statistics never mix.
            scores = self.discriminator(torch.cat(inputs), sites, num_groups=len(inputs))
            judged = discriminator_loss(
                scores,
                num_groups=len(inputs),
                real_target=config.real_target,
                is_flipped=self._flipped_targets(scene, len(inputs), seed=seed),
                is_judged=torch.cat([all_scenes, all_scenes, *is_changed]),
            )
            loss = total = totals.share(judged / num_scenes, scene.index)
        penalty = None
        if config.gradient_penalty > 0:
            penalty = gradient_penalty(self.discriminator, true, scene.sites)
            penalty = totals.share(penalty / num_scenes, scene.index)
            total = loss + config.gradient_penalty * penalty
        self.discriminator_optimization.backward(total)
        return _Judgment(loss.detach(), None if penalty is None else penalty.detach())

    def _fakes(self, scene: "_Scene", *, seed: int) -> list[Tensor]:
        """Perturbed truths [B, V] (eqs. 5 and 6); ``seed`` is the batch's."""
        config = self.config.adversarial
        fakes = []
        if config.geometric_fakes:
            probability = draw_erase_probability(
                scene.batch.batch_size, config.erase_probability, seed, scene.truth.device
            )
            fakes.append(erase_voxels(scene.truth, probability, seed))
        if config.semantic_fakes:
            class_map, probability = draw_shuffle(
                scene.truth,
                num_classes=self.config.model.num_classes,
                probability_range=config.shuffle_probability,
                seed=seed,
            )
            fakes.append(shuffle_categories(scene.truth, class_map, probability, seed))
        return fakes

    def _flipped_targets(self, scene: "_Scene", num_inputs: int, *, seed: int) -> Tensor | None:
        """[num_inputs * B] bool, whether each scene of each input gets the other target; None without label noise.

        ``seed`` is the batch's.
        """
        noise = self.config.adversarial.label_noise
        if noise == 0:
            return None
        words = words_of_items(
            scene.batch.batch_size,
            num_inputs,
            seed=seed,
            stream=Stream.FLIP_TARGETS,
            device=scene.truth.device,
        )
        return (uniform(words[..., 0]) < noise).T.flatten()

    def _generate(self, scene: "_Scene", prediction: Prediction, totals: "_Totals", *, num_scenes: int) -> "_Losses":
        """Adds the generator's gradients on one batch; returns its losses, as shares of the step's."""
        config = self.config.loss
        scene_loss = scene_cross_entropy(
            prediction, scene.batch, label_smoothing=config.label_smoothing, class_weights=self.class_weights
        )
        scene_loss = scene_loss / totals.scored
        loss = scene_loss
        image_loss = lovasz_loss = adversarial_loss = None
        if config.weight_lovasz > 0:
            lovasz_loss = totals.share(scene_lovasz(prediction, scene.batch) / num_scenes, scene.index)
            loss = loss + config.weight_lovasz * lovasz_loss
        if prediction.class_logits_2d is not None:
            image_loss = image_cross_entropy(prediction, scene.batch, label_smoothing=config.label_smoothing)
            assert totals.pixels is not None
            image_loss = image_loss / totals.pixels
            loss = loss + config.weight_2d * image_loss
        with contextlib.ExitStack() as frozen:
            if self.discriminator_optimization is not None:
                # Until the backward pass is over, which may recompute the discriminator.
                frozen.enter_context(_constant(self.discriminator_optimization.parameters))
                frozen.enter_context(unchanged_statistics(self.discriminator))
                with self._autocast(scene.batch.tsdf.device):
                    scores = self._score(scene, self._scored_features(scene, prediction))
                adversarial_loss = totals.share(real_loss(scores) / num_scenes, scene.index)
                loss = loss + config.weight_adversarial * adversarial_loss
            self.generator_optimization.backward(loss)
        return _Losses(
            loss=loss.detach(),
            scene=scene_loss.detach(),
            lovasz=None if lovasz_loss is None else lovasz_loss.detach(),
            image=None if image_loss is None else image_loss.detach(),
            adversarial=None if adversarial_loss is None else adversarial_loss.detach(),
        )

    def _score(self, scene: "_Scene", features: Tensor) -> Tensor:
        scores: Tensor = self.discriminator(features, scene.sites)
        return scores

    def _scored_features(self, scene: "_Scene", prediction: Prediction) -> Tensor:
        """The discriminator's input from a prediction: its scored voxels only."""
        features = prediction.voxel_logits
        kind = self.config.model.discriminator_input
        if kind != "logits":
            features = features.softmax(dim=1)
        if kind == "one_hot":
            features = _OneHotOfLikeliest.apply(features)
        if prediction.sites is not scene.sites:  # a fusion that needs every voxel
            return features.index_select(0, scene.sites.linear)
        if scene.sites.is_full:
            return features * scene.batch.scored_mask.flatten()[:, None]
        return features


class _Judgment(NamedTuple):
    """The discriminator's losses, detached scalars, as in ``StepReport``."""

    discriminator: Tensor | None = None
    gradient_penalty: Tensor | None = None

    @classmethod
    def sum(cls, parts: "Sequence[_Judgment]") -> "_Judgment":
        """For the batches of a step, each a share of it."""
        return cls(*(_total(values) for values in zip(*parts, strict=True)))


class _Losses(NamedTuple):
    """The generator's losses, detached scalars, as in ``StepReport``."""

    loss: Tensor
    scene: Tensor
    lovasz: Tensor | None
    image: Tensor | None
    adversarial: Tensor | None

    @classmethod
    def sum(cls, parts: "Sequence[_Losses]") -> "_Losses":
        """For the batches of a step, each a share of it."""
        loss, scene, lovasz, image, adversarial = (_total(values) for values in zip(*parts, strict=True))
        assert loss is not None and scene is not None
        return cls(loss, scene, lovasz, image, adversarial)


def _total(values: Sequence[Tensor | None]) -> Tensor | None:
    """Their sum; None where the configuration leaves the loss out."""
    present = [value for value in values if value is not None]
    return torch.stack(present).sum() if present else None


@dataclasses.dataclass(frozen=True, eq=False)
class _Totals:
    """The denominators of a step's means, over all processes.

    Attributes:
        scored: summed weights of the scored voxels.
        pixels: labeled pixels; None without a loss on the image.
        shares: [batches], this process's share of the frames of each batch; None for a single process.
    """

    scored: Tensor
    pixels: Tensor | None
    shares: Tensor | None = None

    @classmethod
    def of(cls, batches: Sequence[Batch], *, has_image_loss: bool, class_weights: Tensor | None) -> "_Totals":
        scored = torch.stack([scored_weight(batch, class_weights) for batch in batches]).sum()
        pixels = None
        if has_image_loss:
            pixels = torch.stack([num_labeled_pixels(batch) for batch in batches]).sum()
        shares = None
        if num_processes() > 1:
            frames = torch.tensor([float(batch.batch_size) for batch in batches], device=scored.device).double()
            sums = sum_over_processes(torch.cat([torch.stack([scored, scored if pixels is None else pixels]), frames]))
            scored = sums[0].to(scored.dtype)
            pixels = None if pixels is None else sums[1].to(pixels.dtype)
            shares = (frames / sums[2:]).float()
        return cls(scored, None if pixels is None else pixels.clamp(min=1), shares)

    def share(self, mean: Tensor, index: int) -> Tensor:
        """A mean over the frames of this process in batch ``index``, as its part of the mean over those of all."""
        return mean if self.shares is None else mean * self.shares[index]


class _Scene:
    """A batch as the discriminator sees it: truth, 255 for voxels that are not scored, and its sites."""

    def __init__(self, batch: Batch, index: int, *, config: ModelConfig, dtype: torch.dtype) -> None:
        if batch.label is None:
            raise ValueError(f"frames {', '.join(batch.frame_ids)}: training needs labels, found none")
        self.batch = batch
        self.index = index
        self.num_classes = config.num_classes
        self.dtype = dtype
        scored = batch.scored_mask
        self.truth = batch.label.masked_fill(~scored, IGNORE_LABEL)
        is_dense = config.sites == "dense"
        self.plan = plan_sites(batch, scored, is_dense=is_dense, with_band=config.encoder_band)
        self.sites = self.plan.voxels
        num_scored = int(scored.sum()) if self.sites.is_full else len(self.sites)
        if num_scored < 2:  # what batch normalization needs
            names = ", ".join(batch.frame_ids) or "(unnamed)"
            raise ValueError(
                f"frames {names}: expected scored voxels (label weight set and label not {IGNORE_LABEL}) in a training "
                f"batch, found {num_scored}; remove these frames from the list, or raise training.batch_size"
            )

    def seed_of(self, seed: int) -> int:
        """The seed of this batch and process, from that of the step."""
        return ((seed * 64 + self.index) * num_processes() + rank()) % 2**63

    def one_hot(self, *labels: Tensor) -> tuple[Tensor, ...]:
        """[N, num_classes] at the sites, for each of ``labels`` [B, V]; zeros where nothing is scored."""
        linear = repeated_sites(self.sites, len(labels)).linear
        return one_hot_sites(torch.cat(labels), linear, self.num_classes, self.dtype).chunk(len(labels))

    def count(self, prediction: Prediction) -> VoxelCounts:
        """Scored voxels by truth and prediction."""
        hit = self.batch.hit_mask.flatten()[prediction.sites.linear]
        return VoxelCounts.of(
            prediction.voxel_logits.argmax(dim=1),
            labels_at(self.batch, prediction.sites),
            hit,
            frames=self.batch.batch_size,
        )


class _OneHotOfLikeliest(torch.autograd.Function):
    """One-hot of the likeliest class of probabilities [N, K]; the gradient passes as if they were returned unchanged.

    The straight-through estimator of Bengio et al. 2013, section 3.4.
    """

    @staticmethod
    def forward(_: Any, probabilities: Tensor) -> Tensor:
        return torch.zeros_like(probabilities).scatter_(1, probabilities.argmax(dim=1, keepdim=True), 1)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


@dataclasses.dataclass(frozen=True, eq=False)
class _RandomState:
    """State of torch's global generators, to repeat the same dropout."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def of(cls, device: torch.device) -> "_RandomState":
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def build_game(networks: Networks, config: Config, *, num_steps: int, device: torch.device) -> AdversarialGame:
    """The game of two networks, with an optimization for each trained one.

    Args:
        num_steps: of the whole run, for the schedule.
        device: where the networks are.
    """
    optimizations = build_optimizations(
        networks.generator, networks.discriminator, config, num_steps=num_steps, device=device
    )
    return AdversarialGame(
        networks.generator,
        networks.discriminator,
        config,
        generator_optimization=optimizations.generator,
        discriminator_optimization=optimizations.discriminator,
    )


@contextlib.contextmanager
def _constant(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within the block gradients pass through these parameters' layers but are not computed for the parameters."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
