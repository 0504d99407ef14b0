"""One step of the adversarial game: the discriminator, then the generator through the updated discriminator."""

import contextlib
import dataclasses
import functools
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ammnet_sparse.config import Config, ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.evaluation.metrics import VoxelCounts
from ammnet_sparse.models.ammnet import Prediction, plan_sites
from ammnet_sparse.models.ensemble import check_goes_with, load_networks
from ammnet_sparse.ops import draw_erase_probability, draw_shuffle, erase_voxels, one_hot_sites, shuffle_categories
from ammnet_sparse.ops.perturbation import Stream, uniform, words_of_items
from ammnet_sparse.processes import num_processes, rank, sum_over_processes
from ammnet_sparse.sparse.convolutions import weights_cast
from ammnet_sparse.sparse.kernel_maps import repeated_sites
from ammnet_sparse.sparse.normalization import unchanged_statistics
from ammnet_sparse.sparse.sites import SiteSet
from ammnet_sparse.training.device import block_graphs
from ammnet_sparse.training.losses import (
    Term,
    discriminator_loss,
    distillation,
    gradient_penalty,
    image_cross_entropy,
    labels_at,
    labels_of,
    num_labeled_pixels,
    real_loss,
    scene_cross_entropy,
    scene_lovasz,
    scored_weight,
    weighted_sum,
)
from ammnet_sparse.training.networks import Networks
from ammnet_sparse.training.optimization import build_optimizations


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a step did, over all processes.

    Attributes:
        values: float64 scalars on the device by name: ``loss``, the generator's weighted sum; the terms of both
            networks that the configuration has, without their weights; and the gradient norms.
        counts: voxels of the prediction that the generator was trained on, with its dropout, augmentation and batch
            statistics, by truth and prediction.
    """

    values: dict[str, Tensor]
    counts: VoxelCounts

    def as_floats(self) -> dict[str, float]:
        """The values as numbers; waits once for the device."""
        return dict(zip(self.values, torch.stack(list(self.values.values())).tolist(), strict=True))


class AdversarialGame:
    """Trains the generator and, if enabled, the discriminator, one step at a time.

    Args:
        networks: generator and discriminator, on ``device``.
        config: losses, fakes, optimization and precision.
        num_steps: of the whole run, for the schedule.
    """

    def __init__(self, networks: Networks, config: Config, *, num_steps: int, device: torch.device) -> None:
        self.networks = networks
        self.generator = networks.generator
        self.discriminator = networks.discriminator
        self.config = config
        self.generator_optimization, self.discriminator_optimization = build_optimizations(
            networks.generator, networks.discriminator, config, num_steps=num_steps, device=device
        )
        weights = config.loss.class_weights
        self.class_weights = torch.tensor(weights, device=device) if weights else None
        self.teachers = None
        if config.loss.teachers:
            self.teachers = load_networks(config.loss.teachers, device=device).requires_grad_(False)
            check_goes_with(
                self.teachers.config, config.model, source="loss.teachers", has_label_maps=config.data.label_maps
            )
        self.graphs = block_graphs(config, device)
        self._device = device
        self._half = torch.float16 if config.training.uses_fp16 else torch.bfloat16
        self._has_image_loss = config.model.reads_image
        buffers = [*self.generator.buffers(), *self.discriminator.buffers()]
        # By type: CUDA copies a list of mixed types one by one.
        self._buffers = [[one for one in buffers if one.dtype == dtype] for dtype in {one.dtype for one in buffers}]
        self._buffers_before = [[torch.empty_like(buffer) for buffer in alike] for alike in self._buffers]

    def undo_statistics(self) -> None:
        """Restores the running statistics from before the last step, whose predictions were not finite.

        Parameters need no restoring: an optimization skips gradients that are not finite.
        """
        _copy(self._buffers_before, into=self._buffers)

    def step(self, batches: Sequence[Batch], *, seed: int, updates_discriminator: bool = True) -> StepReport:
        """One update of each network from the frames of ``batches``, equally many in each.

        Several batches equal one batch of all frames, except batch statistics and random draws. The generator must be
        scored by the updated discriminator. So with several batches the predictions for the discriminator's update come
        from a first pass without gradients and are recomputed, with the same dropout, in the second.

        Args:
            seed: draws the fakes, and which targets are flipped.
            updates_discriminator: false leaves the discriminator as it is; the generator still plays against it.

        Raises:
            ValueError: a batch without labels, or with fewer than two scored voxels; names its frames.
        """
        self.generator.train()
        self.discriminator.train()
        _copy(self._buffers, into=self._buffers_before)
        is_whole = all(batch.batch_size == self.config.training.batch_size for batch in batches)
        with self.graphs.used() if self.graphs is not None and is_whole else contextlib.nullcontext():
            return self._step(batches, seed=seed, updates_discriminator=updates_discriminator)

    def _step(self, batches: Sequence[Batch], *, seed: int, updates_discriminator: bool) -> StepReport:
        scenes = [self._scene(batch, index) for index, batch in enumerate(batches)]
        totals = _Totals.of(batches, has_image_loss=self._has_image_loss, class_weights=self.class_weights)
        is_single = len(scenes) == 1
        prediction: Prediction | None = None
        random_states: list[RandomState] = []
        judged: _Values = defaultdict(list)
        learned: _Values = defaultdict(list)
        norms = {}
        if self.discriminator_optimization is not None and updates_discriminator:
            for scene in scenes:
                if not is_single:
                    random_states.append(random_state(self._device))
                with contextlib.nullcontext() if is_single else self._without_a_trace():
                    prediction = self._predict(scene)
                terms = self._discriminator_terms(scene, prediction, totals, seed=scene.seed_of(seed))
                self.discriminator_optimization.backward(weighted_sum(terms))
                _collect(judged, terms)
            norms["discriminator_gradient_norm"] = self.discriminator_optimization.step()
        counts = []
        for index, scene in enumerate(scenes):
            if random_states:
                restore_random_state(random_states[index], self._device)
            if prediction is None or not is_single:
                prediction = self._predict(scene)
            counts.append(scene.count(prediction))
            with self._constant_discriminator():  # until the backward pass is over, which may recompute it
                terms = self._generator_terms(scene, prediction, totals)
                loss = weighted_sum(terms)
                self.generator_optimization.backward(loss)
            _collect(learned, {"loss": Term(1, loss), **terms})
        norms = {"generator_gradient_norm": self.generator_optimization.step(), **norms}
        losses = _over_processes({**learned, **judged})
        values = losses | {name: norm.double() for name, norm in norms.items()}
        return StepReport(values, functools.reduce(operator.add, counts).over_processes())

    def _scene(self, batch: Batch, index: int) -> "_Scene":
        return _Scene(batch, index, config=self.config.model, dtype=self.discriminator.embed.weight.dtype)

    @contextlib.contextmanager
    def _autocast(self, network: nn.Module) -> Iterator[None]:
        """Within the block ``network`` computes in 16 bits, in mixed precision."""
        if not self.config.training.mixed_precision:
            yield
            return
        with torch.autocast(self._device.type, self._half), weights_cast(network, self._half):
            yield

    @contextlib.contextmanager
    def _without_a_trace(self) -> Iterator[None]:
        """Within the block the generator keeps no gradients and its running statistics."""
        with torch.no_grad(), unchanged_statistics(self.generator):
            yield

    @contextlib.contextmanager
    def _constant_discriminator(self) -> Iterator[None]:
        """Within the block gradients pass through the discriminator, but it does not change."""
        self.discriminator.requires_grad_(False)
        try:
            with unchanged_statistics(self.discriminator):
                yield
        finally:
            self.discriminator.requires_grad_(True)

    def _predict(self, scene: "_Scene") -> Prediction:
        with self._autocast(self.generator):
            prediction: Prediction = self.generator(scene.batch, voxels=scene.plan)
        return prediction

    def _generator_terms(self, scene: "_Scene", prediction: Prediction, totals: "_Totals") -> dict[str, Term]:
        """The generator's losses on one batch, as shares of the step's means."""
        config, batch = self.config.loss, scene.batch
        smoothing = config.label_smoothing
        scene_sum = scene_cross_entropy(prediction, batch, label_smoothing=smoothing, class_weights=self.class_weights)
        terms = {"scene": Term(1, scene_sum / totals.scored)}
        if config.weight_lovasz > 0:
            terms["lovasz"] = Term(config.weight_lovasz, totals.share(scene_lovasz(prediction, batch), scene.index))
        if self.teachers is not None:
            with torch.no_grad(), self._autocast(self.teachers):
                taught = self.teachers(batch, voxels="scored")
            value = distillation(prediction, taught, batch)
            terms["distillation"] = Term(config.weight_distillation, totals.share(value, scene.index))
        if prediction.class_logits_2d is not None:
            image_sum = image_cross_entropy(prediction, batch, label_smoothing=smoothing)
            terms["image"] = Term(config.weight_2d, image_sum / totals.pixels)
        if self.discriminator_optimization is not None:
            with self._autocast(self.discriminator):
                scores = self.discriminator(self._scored_features(scene, prediction), scene.sites)
            terms["adversarial"] = Term(config.weight_adversarial, totals.share(real_loss(scores), scene.index))
        return terms

    def _discriminator_terms(
        self, scene: "_Scene", prediction: Prediction, totals: "_Totals", *, seed: int
    ) -> dict[str, Term]:
        """The discriminator's losses on one batch, as shares of the step's means; ``seed`` is the batch's."""
        config = self.config.adversarial
        fakes = self._fakes(scene, seed=seed)
        predicted = self._scored_features(scene, prediction).detach()
        sites = repeated_sites(scene.sites, 2 + len(fakes))
        true, *fake = scene.one_hot(scene.truth, *fakes, sites=sites)
        # The order in which they update the discriminator's running statistics.
        inputs = (true, predicted, *fake)
        # A fake in which nothing was changed is the truth, which must not be called fake.
        all_scenes = torch.ones(len(scene.truth), dtype=torch.bool, device=scene.truth.device)
        is_changed = [(labels != scene.truth).flatten(1).any(dim=1) for labels in fakes]
        with self._autocast(self.discriminator):
            # One forward pass, in which batch statistics never mix.
            scores = self.discriminator(torch.cat(inputs), sites, num_groups=len(inputs))
            loss = discriminator_loss(
                scores,
                num_groups=len(inputs),
                real_target=config.real_target,
                is_flipped=self._flipped_targets(scene, len(inputs), seed=seed),
                is_judged=torch.cat([all_scenes, all_scenes, *is_changed]),
            )
        terms = {"discriminator": Term(1, totals.share(loss, scene.index))}
        if config.gradient_penalty > 0:
            penalty = gradient_penalty(self.discriminator, true, scene.sites)
            terms["gradient_penalty"] = Term(config.gradient_penalty, totals.share(penalty, scene.index))
        return terms

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


@torch.no_grad()
def _copy(values: list[list[Tensor]], *, into: list[list[Tensor]]) -> None:
    for alike, targets in zip(values, into, strict=True):
        torch._foreach_copy_(targets, alike)


_Values = dict[str, list[Tensor]]
"""Values by name, one a batch of the step."""


def _collect(values: _Values, terms: Mapping[str, Term]) -> None:
    for name, term in terms.items():
        values[name].append(term.value.detach())


def _over_processes(shares: _Values) -> dict[str, Tensor]:
    """The sums of the shares of all batches and processes, float64."""
    totals = [functools.reduce(operator.add, values) for values in shares.values()]
    sums = sum_over_processes(torch.stack(totals).double())
    return dict(zip(shares, sums, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class _Totals:
    """The denominators of a step's means, over all processes.

    Attributes:
        scored: summed weights of the scored voxels.
        pixels: labeled pixels, at least 1.
        num_batches: of this process.
        shares: [batches], this process's share of the frames of each batch; None for a single process.
    """

    scored: Tensor
    pixels: Tensor
    num_batches: int
    shares: Tensor | None = None

    @classmethod
    def of(cls, batches: Sequence[Batch], *, has_image_loss: bool, class_weights: Tensor | None) -> "_Totals":
        scored = torch.stack([scored_weight(batch, class_weights) for batch in batches]).sum()
        pixels = torch.zeros_like(scored)
        if has_image_loss:
            pixels = torch.stack([num_labeled_pixels(batch) for batch in batches]).sum()
        shares = None
        if num_processes() > 1:
            frames = torch.tensor([float(batch.batch_size) for batch in batches], device=scored.device).double()
            sums = sum_over_processes(torch.cat([torch.stack([scored, pixels]), frames]))
            scored, pixels = sums[0].to(scored.dtype), sums[1].to(pixels.dtype)
            shares = (frames / sums[2:]).float()
        return cls(scored, pixels.clamp(min=1), len(batches), shares)

    def share(self, mean: Tensor, index: int) -> Tensor:
        """A mean over the frames of this process in batch ``index``, as its part of the step's mean over all."""
        mean = mean if self.num_batches == 1 else mean / self.num_batches
        return mean if self.shares is None else mean * self.shares[index]


class _Scene:
    """A batch as the discriminator sees it: truth, 255 for voxels that are not scored, and its sites."""

    def __init__(self, batch: Batch, index: int, *, config: ModelConfig, dtype: torch.dtype) -> None:
        self.batch = batch
        self.index = index
        self.num_classes = config.num_classes
        self.dtype = dtype
        scored = batch.scored_mask
        self.truth = labels_of(batch).masked_fill(~scored, IGNORE_LABEL)
        self.plan = plan_sites(batch, scored, config)
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

    def one_hot(self, *labels: Tensor, sites: SiteSet) -> tuple[Tensor, ...]:
        """[N, num_classes] at the sites, for each of ``labels`` [B, V]; zeros where nothing is scored.

        Args:
            sites: the scene's, at least as often as there are labels.
        """
        linear = sites.linear[: len(labels) * len(self.sites)]
        return one_hot_sites(torch.cat(labels), linear, self.num_classes, self.dtype).chunk(len(labels))

    def count(self, prediction: Prediction) -> VoxelCounts:
        """Scored voxels by truth and prediction."""
        hit = self.batch.hit_mask.flatten()[prediction.sites.linear]
        return VoxelCounts.of(
            prediction.voxel_logits.argmax(dim=1),
            labels_at(self.batch, prediction.sites),
            hit,
            frames=self.batch.batch_size,
            num_classes=self.num_classes,
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


RandomState = tuple[Tensor, Tensor | None]
"""State of torch's global generators: of the CPU, and of a CUDA device."""


def random_state(device: torch.device) -> RandomState:
    """The state from which ``restore_random_state`` repeats the same random numbers."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_random_state(state: RandomState, device: torch.device) -> None:
    """Continues from a state; that of a CUDA device is ignored on a CPU."""
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda, device)
