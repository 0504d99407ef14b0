"""One step of the adversarial game: who is changed by what, and what each network sees."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.evaluation.metrics import CompletionMetrics
from ammnet_sparse.models.ammnet import AMMNet, SitePlan, plan_sites
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.ensemble import Ensemble
from ammnet_sparse.models.image_encoders import ENCODERS
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import save_weights
from ammnet_sparse.sparse.normalization import SiteBatchNorm
from ammnet_sparse.sparse.sites import SiteSet, full_sites, sites_from_mask
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.losses import (
    discriminator_loss,
    gradient_penalty,
    scene_cross_entropy,
    scene_lovasz,
    scored_weight,
)
from ammnet_sparse.training.optimization import Optimization
from tests.models.encoders import SmallSegFormer
from tests.training.support import both, differing, make_game, state_of, tiny_batch, tiny_config


@pytest.fixture(scope="module")
def batch() -> Batch:
    return tiny_batch((1, 2))


def frames_of(batch: Batch, which: slice) -> Batch:
    """Some of the frames of a batch."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    tensors = {name: value[which] for name, value in fields.items() if isinstance(value, Tensor)}
    return dataclasses.replace(batch, **tensors, frame_ids=batch.frame_ids[which])


def before_step(optimization: Optimization | None, action: Callable[[], None]) -> None:
    """Calls ``action`` right before the optimization updates its network."""
    assert optimization is not None
    update = optimization.step

    def step() -> Tensor:
        action()
        return update()

    optimization.step = step  # type: ignore[method-assign]


def recorded_gradients(game: AdversarialGame) -> dict[str, Tensor]:
    """Filled by the next step with the gradients of both networks, as they are before clipping."""
    gradients: dict[str, Tensor] = {}
    for part in (game.discriminator_optimization, game.generator_optimization):
        own = {id(parameter) for parameter in (part.parameters if part is not None else ())}

        def record(own: set[int] = own) -> None:
            for name, value in both(game).named_parameters():
                if id(value) in own and value.grad is not None:
                    gradients[name] = value.grad.clone()

        if part is not None:
            before_step(part, record)
    return gradients


def scored_sites(batch: Batch) -> SiteSet:
    return sites_from_mask(batch.scored_mask.view(-1, *batch.grid_shape))


@dataclasses.dataclass
class Call:
    """What the discriminator read of one of its inputs."""

    features: Tensor
    linear: Tensor
    has_gradient: bool


def recorded_calls(game: AdversarialGame) -> list[Call]:
    """The inputs in their order, where several are groups of one forward pass too."""
    calls: list[Call] = []

    def record(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        features, sites = inputs
        groups = keywords.get("num_groups", 1)
        cells = sites.batch_size // groups * sites.num_cells
        parts = zip(features.detach().clone().chunk(groups), sites.linear.chunk(groups), strict=True)
        for index, (part, linear) in enumerate(parts):
            calls.append(Call(part, linear - index * cells, features.requires_grad))

    game.discriminator.register_forward_pre_hook(record, with_kwargs=True)
    return calls


@pytest.mark.parametrize(("recompute", "accumulate"), [("off", 1), ("elementwise", 2), ("blocks", 1), ("full", 2)])
def test_each_step_leaves_the_other_network_bit_identical(batch: Batch, recompute: str, accumulate: int) -> None:
    game = make_game(tiny_config(training={"recompute": recompute}))
    network = both(game)
    start, between = state_of(network), {}
    before_step(game.generator_optimization, lambda: between.update(state_of(network)))
    flags = [value.requires_grad for value in network.parameters()]
    game.step([batch] * accumulate, seed=1)
    assert [value.requires_grad for value in network.parameters()] == flags
    assert all(value.grad is None for value in network.parameters())
    # ``between`` is from after the generator's backward pass: running statistics of both have moved, its parameters
    # have not.
    parameters = {name for name, _ in network.named_parameters()}
    moved = differing(start, between)
    assert {name for name in moved & parameters if not name.startswith("discriminator.")} == set()
    of_discriminator = {name for name in parameters if name.startswith("discriminator.")}
    assert of_discriminator <= moved
    # The generator's update changes nothing of the discriminator.
    later = differing(between, state_of(network))
    assert later and not any(name.startswith("discriminator.") for name in later)
    assert {name for name in parameters if not name.startswith("discriminator.")} <= later
    counters = {
        name: int(value) for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")
    }
    # Four inputs of the discriminator a batch; the generator is counted once a batch.
    assert {count for name, count in counters.items() if name.startswith("discriminator.")} == {4 * accumulate}
    assert {count for name, count in counters.items() if not name.startswith("discriminator.")} == {accumulate}


@pytest.mark.parametrize("sites", ["sparse", "dense"])
def test_discriminator_loss_is_the_sum_of_four_separate_forwards(batch: Batch, sites: str) -> None:
    game = make_game(tiny_config(model={"sites": sites}), dtype=torch.float64)
    discriminator = copy.deepcopy(game.discriminator).train()
    calls = recorded_calls(game)
    report = game.step([batch], seed=3)
    truth, prediction, geometric, semantic, through = calls
    scored = batch.scored_mask.flatten()
    where = scored.nonzero().squeeze(1)
    assert batch.label is not None
    for call in calls:  # the same sites, and nothing at those that are not scored
        expected = where if sites == "sparse" else torch.arange(scored.numel())
        assert torch.equal(call.linear, expected)
        assert (call.features[~scored[call.linear]] == 0).all()
    label = batch.label.flatten()[where].long()
    rows = slice(None) if sites == "sparse" else where

    def classes(call: Call) -> Tensor:
        one_hot = call.features[rows]
        assert ((one_hot == 0) | (one_hot == 1)).all() and (one_hot.sum(1) == 1).all()
        return one_hot.argmax(1)

    assert torch.equal(classes(truth), label)
    erased, shuffled = classes(geometric), classes(semantic)
    assert (erased != label).any() and (erased[erased != label] == 0).all()
    assert (shuffled != label).any() and ((shuffled == 0) == (label == 0)).all()
    assert torch.equal(prediction.features, through.features)
    assert [call.has_gradient for call in calls] == [False, False, False, False, True]

    losses = []
    for call, target in ((truth, 1.0), (prediction, 0.0), (geometric, 0.0), (semantic, 0.0)):
        if sites == "sparse":
            score = discriminator(call.features, scored_sites(batch))
        else:
            score = discriminator(call.features, full_sites(batch.batch_size, batch.grid_shape, torch.device("cpu")))
        losses.append(F.binary_cross_entropy_with_logits(score, torch.full_like(score, target)))
    torch.testing.assert_close(report.values["discriminator"], torch.stack(losses).sum().detach(), rtol=1e-9, atol=0)


def test_label_noise_flips_targets_of_the_discriminators_loss_alone(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor | None] = []

    def loss(*arguments: Any, is_flipped: Tensor | None, **keywords: Any) -> Tensor:
        drawn.append(is_flipped)
        return discriminator_loss(*arguments, is_flipped=is_flipped, **keywords)

    monkeypatch.setattr("ammnet_sparse.training.game.discriminator_loss", loss)
    noise = 0.3
    without, noisy, again = (
        make_game(tiny_config(adversarial={"label_noise": value}), dtype=torch.float64) for value in (0, noise, noise)
    )
    reports = [game.step([batch, tiny_batch((3, 4))], seed=3) for game in (without, noisy, again)]
    assert drawn[:2] == [None, None]
    first, second = drawn[2:4]
    assert first is not None and second is not None and not torch.equal(first, second)  # each batch its own
    for mine, other in zip(drawn[2:4], drawn[4:], strict=True):
        assert mine is not None and other is not None and torch.equal(mine, other)  # the seed's alone
    assert first.any() or second.any()
    differ = differing(state_of(both(noisy)), state_of(both(again)))
    assert not differ and reports[1].as_floats() == reports[2].as_floats()
    # The predictions, and the loss against the truth, are those of before.
    assert torch.equal(reports[0].values["scene"], reports[1].values["scene"])
    assert reports[0].values["discriminator"] != reports[1].values["discriminator"]


def test_label_noise_flips_each_scene_of_each_input_on_its_own(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = 0.3
    game = make_game(tiny_config(adversarial={"label_noise": noise}))
    scene = game._scene(batch, 0)

    def flips(seed: int) -> Tensor:
        flipped = game._flipped_targets(scene, 4, seed=scene.seed_of(seed))
        assert flipped is not None and flipped.shape == (8,)
        return flipped

    drawn = torch.stack([flips(seed) for seed in range(100)]).double()
    # As often as the key says: 100 draws, four standard deviations.
    assert ((drawn.mean(0) - noise).abs() < 4 * (noise * (1 - noise) / 100) ** 0.5).all()
    assert (torch.corrcoef(drawn.T) - torch.eye(8, dtype=torch.float64)).abs().max() < 0.4

    monkeypatch.setattr("ammnet_sparse.training.game.num_processes", lambda: 2)
    of_processes = []
    for number in (0, 1):
        monkeypatch.setattr("ammnet_sparse.training.game.rank", lambda number=number: number)
        of_processes.append(torch.stack([flips(seed) for seed in range(8)]))
    assert not torch.equal(*of_processes)


@pytest.mark.parametrize(("sites", "recompute"), [("sparse", "off"), ("dense", "off"), ("sparse", "full")])
def test_gradient_penalty_is_a_part_of_the_discriminators_loss(batch: Batch, sites: str, recompute: str) -> None:
    keys = {"model": {"sites": sites}, "training": {"recompute": recompute}}
    games = [
        make_game(tiny_config(adversarial={"gradient_penalty": weight}, **keys), dtype=torch.float64)
        for weight in (0, 3)
    ]
    discriminator = copy.deepcopy(games[0].discriminator).train()
    calls = recorded_calls(games[0])
    gradients = [recorded_gradients(game) for game in games]
    without, report = (game.step([batch], seed=3) for game in games)
    assert "gradient_penalty" not in without.values
    assert torch.equal(report.values["discriminator"], without.values["discriminator"])

    here = scored_sites(batch) if sites == "sparse" else full_sites(2, batch.grid_shape, torch.device("cpu"))
    penalty = gradient_penalty(discriminator, calls[0].features, here)
    penalty.backward()
    torch.testing.assert_close(report.values["gradient_penalty"], penalty.detach())
    assert report.as_floats()["gradient_penalty"] > 0
    for name, value in discriminator.named_parameters():
        name = f"discriminator.{name}"
        torch.testing.assert_close(gradients[1][name] - gradients[0][name], 3 * value.grad)
    before, after = (dict(game.discriminator.named_buffers()) for game in games)
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_penalty_and_its_gradient_are_those_of_the_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = (36, 36, 36)
    discriminator = Discriminator(ModelConfig(discriminator_width=8, grid_shape=shape)).to(dtype)
    here = full_sites(2, shape, torch.device("cpu"))
    coarse = torch.randint(12, (2, 1, 6, 6, 6)).where(torch.rand(2, 1, 6, 6, 6) < 0.3, 0)
    truth = F.one_hot(F.interpolate(coarse.double(), scale_factor=6).long().flatten(), 12).to(dtype)

    def exact() -> float:
        at = truth.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(at, here).sum(), at)
        return gradient.square().sum().item() / 2 / 2

    penalty = gradient_penalty(discriminator, truth, here)
    # The scenes share batch statistics, so a step in both is not quite the sum of a step in each.
    assert penalty.item() == pytest.approx(exact(), rel=0.3)
    penalty.backward()
    parameters = list(discriminator.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters)
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    values = []
    for moves in (1, -2):  # along the penalty's gradient, and back to the other side
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += moves * 1e-3 / norm * gradient
        values.append(exact())
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(norm.item(), rel=0.05)


def test_generator_learns_through_the_updated_discriminator(batch: Batch) -> None:
    config = tiny_config(loss={"weight_adversarial": 0.7}, optimizer={"learning_rate": 0.01, "gradient_clip": 1e9})
    game = make_game(config, dtype=torch.float64)
    updated: list[Any] = []
    assert game.discriminator_optimization is not None
    stale = copy.deepcopy(game.discriminator).train()
    twin = copy.deepcopy(game.generator)
    before_step(game.generator_optimization, lambda: updated.append(copy.deepcopy(game.discriminator).train()))
    gradients = recorded_gradients(game)
    game.step([batch], seed=1)

    def expected_gradients(discriminator: Any) -> dict[str, Tensor]:
        network = copy.deepcopy(twin).train()
        sites = scored_sites(batch)
        prediction = network(batch, voxels=SitePlan(plan_sites(batch, None, network.config).encoder, sites))
        loss = scene_cross_entropy(prediction, batch, label_smoothing=0.2) / scored_weight(batch)
        score = discriminator(prediction.voxel_logits, sites)
        (loss + 0.7 * F.binary_cross_entropy_with_logits(score, torch.ones_like(score))).backward()
        return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}

    def distance(expected: dict[str, Tensor]) -> float:
        largest = max(float(value.abs().max()) for value in expected.values())
        return max(float((gradients[name] - value).abs().max()) for name, value in expected.items()) / largest

    own = {name for name in gradients if not name.startswith("discriminator.")}
    expected = expected_gradients(updated[0])
    assert own == expected.keys()
    assert distance(expected) < 1e-9
    assert distance(expected_gradients(stale)) > 1e-4


@pytest.mark.parametrize(
    ("image", "class_weights"), [(False, []), (True, []), (False, [0.3, *range(1, 12)])], ids=["", "image", "weights"]
)
def test_accumulation_equals_one_large_batch(
    image: bool, class_weights: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With normalization by running statistics, and fakes that depend on the truth alone."""
    frames = tiny_batch((1, 2, 3, 4))
    model: dict[str, Any] = {}
    if image:
        model = {"image_encoder": "segformer_b2", "freeze_image_encoder": False}
        monkeypatch.setitem(ENCODERS, "segformer_b2", SmallSegFormer)
        pixels = torch.randn(4, 3, 32, 64, generator=torch.Generator().manual_seed(0))
        mapping = torch.where(frames.hit_mask, frames.mapping % (32 * 64), frames.mapping)
        frames = dataclasses.replace(frames, image=pixels, mapping=mapping)
    halves = [frames_of(frames, slice(0, 2)), frames_of(frames, slice(2, 4))]
    # Unlike batches: the mean over all their voxels is not the mean of their means.
    assert scored_weight(halves[0]) != scored_weight(halves[1])
    monkeypatch.setattr(SiteBatchNorm, "train", lambda self, mode=True: torch.nn.Module.train(self, False))
    monkeypatch.setattr(torch.nn.BatchNorm2d, "train", lambda self, mode=True: torch.nn.Module.train(self, False))
    results = []
    for batches in ([frames], halves):
        sections = {"model": model, "optimizer": {"gradient_clip": 0.5}, "loss": {"class_weights": class_weights}}
        game = make_game(tiny_config(**sections), dtype=torch.float64)
        game._fakes = lambda scene, *, seed: [  # type: ignore[method-assign]
            scene.truth.where(scene.truth != 3, 0),
            scene.truth.where(scene.truth != 4, 5),
        ]
        gradients = recorded_gradients(game)
        results.append((game.step(batches, seed=1).as_floats(), gradients, state_of(both(game))))
    (one, one_gradients, one_state), (two, two_gradients, two_state) = results
    assert one.keys() == two.keys() and ("image" in one) == image
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-9), name
    largest = max(float(value.abs().max()) for value in one_gradients.values())
    assert one_gradients.keys() == two_gradients.keys() == dict(both(game).named_parameters()).keys()
    for name, value in one_gradients.items():
        torch.testing.assert_close(two_gradients[name], value, rtol=1e-8, atol=1e-10 * largest, msg=name)
    for name, value in one_state.items():
        torch.testing.assert_close(two_state[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_recomputation_changes_neither_gradients_nor_statistics(batch: Batch) -> None:
    """Dropout on: the recomputed pass must draw the same channels."""
    dropout = {"encoder_dropout": 0.3, "decoder_dropout": 0.1}
    results = []
    for recompute in ("off", "elementwise", "blocks", "full"):
        game = make_game(tiny_config(model=dropout, training={"recompute": recompute}), dtype=torch.float64)
        gradients = recorded_gradients(game)
        torch.manual_seed(7)
        report = game.step([batch], seed=1)
        results.append((report.as_floats(), gradients, state_of(both(game)), torch.get_rng_state()))
    kept = results[0]
    for recomputed in results[1:]:
        assert recomputed[0] == pytest.approx(kept[0], rel=1e-12)
        largest = max(float(value.abs().max()) for value in kept[1].values())
        for name, value in kept[1].items():
            torch.testing.assert_close(recomputed[1][name], value, rtol=1e-10, atol=1e-12 * largest, msg=name)
        for name, value in kept[2].items():
            torch.testing.assert_close(recomputed[2][name], value, rtol=1e-6, atol=1e-9, msg=name)
        assert torch.equal(recomputed[3], kept[3])


@pytest.mark.cuda
@pytest.mark.parametrize(("mixed_precision", "tolerance"), [(False, 1e-2), (True, 0.3)])
def test_a_step_on_a_gpu_is_the_same_however_it_is_recomputed(
    batch: Batch, mixed_precision: bool, tolerance: float
) -> None:
    """In float32 also as on the CPU. On so small a grid gradients answer to the rounding of float16."""

    def step(device: str, training: dict[str, Any]) -> tuple[float, Tensor]:
        # Without the discriminator: normalizing over two values a channel here, it answers to any rounding.
        game = make_game(tiny_config(adversarial={"enabled": False}, training=training), device=device)
        scaler = torch.amp.GradScaler(device, init_scale=128.0, enabled=training["mixed_precision"])
        game.generator_optimization.scaler = scaler
        gradients = recorded_gradients(game)
        scene = game.step([batch.to(device)], seed=1).as_floats()["scene"]
        # Recorded before the scale is divided out.
        scale = scaler.get_scale()
        return scene, torch.cat([value.flatten() for value in gradients.values()]).cpu() / scale

    scene, expected = step("cuda" if mixed_precision else "cpu", {"mixed_precision": mixed_precision})
    for recompute in ("off", "elementwise", "blocks", "full"):
        found = step("cuda", {"recompute": recompute, "mixed_precision": mixed_precision})
        assert found[0] == pytest.approx(scene, rel=1e-2)
        assert (found[1] - expected).norm() <= tolerance * expected.norm(), recompute


def test_accumulation_repeats_the_dropout_of_the_first_pass(batch: Batch) -> None:
    game = make_game(tiny_config(model={"encoder_dropout": 0.5, "decoder_dropout": 0.5}))
    calls = recorded_calls(game)
    game.step([batch, batch], seed=1)
    predictions = [calls[1].features, calls[5].features]  # of four inputs a batch, the second
    assert not torch.equal(*predictions)
    assert [torch.equal(call.features, wanted) for call, wanted in zip(calls[8:], predictions, strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize("sites", ["sparse", "dense"])
def test_step_counts_the_prediction_it_is_trained_on(batch: Batch, sites: str) -> None:
    for batches in ([batch], [batch, tiny_batch((3, 4))]):
        game = make_game(tiny_config(model={"sites": sites}))
        untrained = copy.deepcopy(game.generator).train()
        metrics = CompletionMetrics()
        with torch.no_grad():
            for part in batches:
                metrics.update(untrained(part, voxels="scored").labels, part)
        counts = game.step(batches, seed=1).counts
        assert counts.scores() == metrics.compute() and counts.frames == 2 * len(batches)
        assert torch.equal(counts.confusion, metrics.compute().confusion)


@pytest.mark.parametrize("sites", ["sparse", "dense"])
def test_lovasz_is_a_part_of_the_loss_and_its_mean_over_batches(batch: Batch, sites: str) -> None:
    for batches in ([batch], [batch, tiny_batch((3, 4))]):
        config = tiny_config(model={"sites": sites}, loss={"weight_lovasz": 0.5}, adversarial={"enabled": False})
        game = make_game(config)
        untrained = copy.deepcopy(game.generator).train()
        with torch.no_grad():
            parts = [scene_lovasz(untrained(part, voxels="scored"), part) for part in batches]
        gradients = recorded_gradients(game)
        report = game.step(batches, seed=1)
        torch.testing.assert_close(report.values["lovasz"], torch.stack(parts).mean().double())
        torch.testing.assert_close(report.values["loss"], report.values["scene"] + 0.5 * report.values["lovasz"])
        without = make_game(tiny_config(model={"sites": sites}, adversarial={"enabled": False}))
        plain = recorded_gradients(without)
        assert "lovasz" not in without.step(batches, seed=1).values
        weight = "decoder.classifier.weight"
        assert gradients.keys() == plain.keys() and not torch.allclose(gradients[weight], plain[weight])


@pytest.mark.parametrize("changes", [{}, {"sites": "dense"}, {"fusion": "senet"}])
def test_distillation_is_the_divergence_from_the_mean_of_the_teachers(
    batch: Batch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Teachers differ from the trained network in what may differ: width, and the sites of the encoders."""
    teachers = [AMMNet(tiny_config(model={"width": width}).model) for width in (8, 16)]
    files = [tmp_path / f"{teacher.config.width}.safetensors" for teacher in teachers]
    for teacher, file in zip(teachers, files, strict=True):
        save_weights(file, teacher.state_dict(), model_config=teacher.config)
    loss = {"teachers": [str(file) for file in files], "weight_distillation": 0.5}
    game = make_game(tiny_config(model=changes, loss=loss, adversarial={"enabled": False}))
    assert isinstance(game.teachers, Ensemble)
    before = copy.deepcopy(game.teachers.state_dict())
    with torch.no_grad():
        student = copy.deepcopy(game.generator).train()(batch, voxels="scored").logits
        taught = [teacher.eval()(batch, voxels="all").probabilities for teacher in teachers]
    divergence = F.kl_div(student.log_softmax(dim=1), torch.stack(taught).mean(dim=0), reduction="none").sum(dim=1)
    report = game.step([batch], seed=1)
    expected = divergence.flatten(1)[batch.scored_mask].mean().double()
    torch.testing.assert_close(report.values["distillation"], expected)
    torch.testing.assert_close(report.values["loss"], report.values["scene"] + 0.5 * report.values["distillation"])
    assert not differing(before, game.teachers.state_dict())


def test_teachers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    teacher, file = AMMNet(tiny_config(model={"num_classes": 5}).model), tmp_path / "five.safetensors"
    save_weights(file, teacher.state_dict(), model_config=teacher.config)
    with pytest.raises(WeightsError, match=r"loss.teachers.*num_classes"):
        make_game(tiny_config(loss={"teachers": [str(file)]}))


def test_weights_are_converted_at_once_and_their_gradients_back(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> tuple[dict[str, float], dict[str, Tensor]]:
        game = make_game(tiny_config(training={"mixed_precision": "bf16"}))
        gradients = recorded_gradients(game)
        return game.step([batch], seed=1).as_floats(), gradients

    values, gradients = step()
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    monkeypatch.setattr("ammnet_sparse.training.game.weights_cast", lambda network, dtype: contextlib.nullcontext())
    one_by_one, expected = step()
    assert values == one_by_one and gradients.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())


def test_bfloat16_on_a_cpu_takes_nearly_the_same_step(batch: Batch) -> None:
    values = {
        precision: make_game(tiny_config(training={"mixed_precision": precision})).step([batch], seed=1).as_floats()
        for precision in (False, "bf16")
    }
    assert values["bf16"] != values[False]
    assert values["bf16"]["scene"] == pytest.approx(values[False]["scene"], rel=2e-2)


def test_scene_without_object_and_scene_without_scored_voxel(batch: Batch) -> None:
    assert batch.label is not None
    label, weight = batch.label.clone(), batch.label_weight.clone()
    label[0] = torch.where(label[0] == IGNORE_LABEL, IGNORE_LABEL, 0)
    for without_object in (dataclasses.replace(batch, label=label), dataclasses.replace(batch, label=label * 0)):
        assert all(map(torch.isfinite, torch.tensor(list(report_of(without_object).values()))))
    weight[1] = False
    for sites in ("sparse", "dense"):
        values = report_of(dataclasses.replace(batch, label_weight=weight), sites=sites)
        assert all(map(torch.isfinite, torch.tensor(list(values.values()))))


def report_of(batch: Batch, *, sites: str = "sparse") -> dict[str, float]:
    return make_game(tiny_config(model={"sites": sites})).step([batch], seed=1).as_floats()


@pytest.mark.parametrize("sites", ["sparse", "dense"])
def test_batch_without_scored_voxel_is_named(batch: Batch, sites: str) -> None:
    empty = dataclasses.replace(batch, label_weight=torch.zeros_like(batch.label_weight), frame_ids=("0007", "0008"))
    game = make_game(tiny_config(model={"sites": sites}))
    start = state_of(both(game))
    with pytest.raises(ValueError, match="0007, 0008"):
        game.step([batch, empty], seed=1)
    assert not differing(start, state_of(both(game)))
    with pytest.raises(ValueError, match="0001, 0002"):
        game.step([dataclasses.replace(batch, label=None)], seed=1)


def test_softmax_option_shows_the_discriminator_probabilities(batch: Batch) -> None:
    game = make_game(tiny_config(model={"discriminator_input": "softmax"}))
    calls = recorded_calls(game)
    game.step([batch], seed=1)
    for call in (calls[1], calls[4]):
        assert (call.features > 0).all()
        torch.testing.assert_close(call.features.sum(1), torch.ones(len(call.linear)))


@pytest.mark.parametrize("sites", ["sparse", "dense"])
def test_one_hot_option_shows_the_discriminator_classes_and_passes_the_gradient_of_softmax(
    batch: Batch, sites: str
) -> None:
    game = make_game(tiny_config(model={"discriminator_input": "one_hot", "sites": sites}))
    calls = recorded_calls(game)
    game.step([batch], seed=1)
    is_seen = batch.scored_mask.flatten() if sites == "dense" else torch.ones(len(calls[1].linear), dtype=torch.bool)
    for call in (calls[1], calls[4]):
        assert (call.features[is_seen].amax(1) == 1).all() and (call.features[is_seen].sum(1) == 1).all()
        assert not call.features[~is_seen].any()
    assert calls[4].has_gradient

    scene = game._scene(batch, 0)
    prediction = game._predict(scene)
    logits = prediction.voxel_logits.detach()[:, :12].double().requires_grad_()
    features = game._scored_features(scene, dataclasses.replace(prediction, voxel_logits=logits))
    weights = torch.linspace(0, 50, features.numel()).cos().view_as(features).double()
    (found,) = torch.autograd.grad((features * weights).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(1) * weights)[is_seen].sum(), logits)
    torch.testing.assert_close(found, expected)


def test_a_fake_that_equals_the_truth_is_left_out(batch: Batch) -> None:
    assert batch.label is not None
    label = batch.label.clone()
    label[0] = torch.where(label[0] == IGNORE_LABEL, IGNORE_LABEL, 0)
    game = make_game(tiny_config())
    scores: list[Tensor] = []
    game.discriminator.register_forward_hook(lambda module, inputs, output: scores.append(output.detach().double()))
    report = game.step([dataclasses.replace(batch, label=label)], seed=1)
    real, predicted, geometric, semantic = scores[0].chunk(4)
    judged = torch.cat([predicted, geometric[1:], semantic[1:]])
    expected = (F.softplus(-real).sum() + F.softplus(judged).sum()) / 2
    torch.testing.assert_close(report.values["discriminator"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_without_the_discriminators_update_leaves_it_as_it_is(batch: Batch, accumulate: int) -> None:
    game = make_game(tiny_config())
    generator, discriminator = state_of(game.generator), state_of(game.discriminator)
    report = game.step([batch] * accumulate, seed=1, updates_discriminator=False)
    assert not {"discriminator", "discriminator_gradient_norm"} & report.values.keys()
    assert "adversarial" in report.values
    assert not differing(discriminator, state_of(game.discriminator))
    assert differing(generator, state_of(game.generator))


@pytest.mark.parametrize(
    ("fakes", "expected"),
    [
        ({"geometric_fakes": False}, 3),
        ({"semantic_fakes": False}, 3),
        ({"geometric_fakes": False, "semantic_fakes": False}, 2),
    ],
)
def test_fakes_can_be_left_out(batch: Batch, fakes: dict[str, bool], expected: int) -> None:
    game = make_game(tiny_config(adversarial=fakes))
    calls = recorded_calls(game)
    game.step([batch], seed=1)
    assert len(calls) == expected + 1
    if "semantic_fakes" not in fakes:
        assert ((calls[2].features[:, 0] > 0) == (calls[0].features[:, 0] > 0)).all()  # shuffled: empty stays


def test_fixed_probabilities_are_used(batch: Batch) -> None:
    fixed = {"erase_probability": [1.0, 1.0], "shuffle_probability": [0.0, 0.0]}
    game = make_game(tiny_config(adversarial=fixed))
    calls = recorded_calls(game)
    game.step([batch], seed=1)
    assert (calls[2].features[:, 0] == 1).all()
    assert torch.equal(calls[3].features, calls[0].features)


def test_without_the_game_the_discriminator_is_not_used(batch: Batch) -> None:
    game = make_game(tiny_config(adversarial={"enabled": False}))
    calls = recorded_calls(game)
    discriminator = state_of(game.discriminator)
    for batches in ([batch], [batch, batch]):
        report = game.step(batches, seed=1)
        assert report.values.keys() == {"loss", "scene", "generator_gradient_norm"}
        torch.testing.assert_close(report.values["loss"], report.values["scene"])
    assert not calls and not differing(discriminator, state_of(game.discriminator))
