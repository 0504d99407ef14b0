"""Whole runs on a tiny set: what they leave behind, and that an interrupted one goes on as if nothing had happened."""

import copy
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ammnet_sparse.config import Config, ConfigError, config_from_dict, load_config
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.packing import pack_set
from ammnet_sparse.evaluation.metrics import Scores, scores_from_counts
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.pictures.history import table_html
from ammnet_sparse.training import run_folder
from ammnet_sparse.training.checkpoints import CheckpointError, check_same_run, load_state, save_state
from ammnet_sparse.training.game import StepReport
from ammnet_sparse.training.interruption import RunInterrupted, StopRequest
from ammnet_sparse.training.loop import DivergenceError, Run
from ammnet_sparse.training.records import RunResult, format_result
from ammnet_sparse.training.run_folder import RunParts
from ammnet_sparse.training.validation import Validation
from tests.data.frames import write_list
from tests.training.support import GRID, lines_of, make_run, tiny_config, tiny_set

pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.fixture(autouse=True)
def state_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "SECONDS_BETWEEN_SAVES", 0.0)


def run_config(root: Path, **training: Any) -> Config:
    """Two epochs of two steps of two frames, with dropout and augmentation."""
    return tiny_config(
        data={"root": str(root)},
        model={"encoder_dropout": 0.3, "decoder_dropout": 0.1},
        training={"epochs": 2, "batch_size": 2, **training},
    )


def with_keys(config: Config, changes: dict[str, Any]) -> Config:
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return config_from_dict(values, source="test")


def assert_same_run(found: Path, expected: Path) -> None:
    assert lines_of(found) == lines_of(expected)
    for name in ("last.safetensors", "best.safetensors"):
        (weights, config, metadata), (wanted, *others) = read_weights(found / name), read_weights(expected / name)
        assert [config, metadata] == others
        assert all(torch.equal(weights[key], value) for key, value in wanted.items())
    states = [load_state(folder) for folder in (found, expected)]
    for part in ("generator", "discriminator"):
        moments, wanted = (state[part]["optimizer"]["state"] for state in states)
        assert all(torch.equal(moments[key][name], wanted[key][name]) for key in wanted for name in wanted[key])
    assert torch.equal(states[0]["random_cpu"], states[1]["random_cpu"])


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory, quick_pictures: None) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, make_run(run_config(root), folder).train()


def before_call(run: Run, number: int, action: Callable[[], None]) -> None:
    """Calls ``action`` before the run's step of this number, from 1."""
    step, done = run.game.step, run.progress

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if done.step + 1 == number:
            action()
        return step(*arguments, **options)

    run.game.step = wrapped  # type: ignore[method-assign]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def crash() -> None:
    raise RuntimeError("power cut")


def test_discriminator_every_second_step(root: Path, tmp_path: Path) -> None:
    config = with_keys(run_config(root, epochs=3), {"adversarial.discriminator_every": 2})
    run = make_run(config, tmp_path / "run")
    optimization = run.game.discriminator_optimization
    assert optimization is not None
    run.train()
    entries = lines_of(tmp_path / "run")
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert ["discriminator" in entry for entry in steps] == [True, False] * 3
    assert all("adversarial" in entry for entry in steps)
    for epoch, first in zip([entry for entry in entries if entry["kind"] == "epoch"], steps[::2], strict=True):
        assert epoch["discriminator"] == pytest.approx(first["discriminator"])
    # Its schedule is over its own three updates.
    assert optimization.num_updates == 3
    assert optimization.learning_rate == pytest.approx(1e-7)


def test_run_leaves_its_files_behind(uninterrupted: tuple[Path, RunResult], root: Path) -> None:
    folder, result = uninterrupted
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "last.safetensors",
        "best.safetensors",
        "state.pt",
        "state.previous.pt",
        "run.lock",
        "tensorboard",
    }
    config = run_config(root)
    assert load_config(folder / "config.yaml") == config
    entries = lines_of(folder)
    assert [(entry["kind"], entry["step"]) for entry in entries] == [
        ("step", 1),
        ("step", 2),
        ("epoch", 2),
        ("step", 3),
        ("step", 4),
        ("epoch", 4),
    ]
    steps = [entry for entry in entries if entry["kind"] == "step"]
    names = {"loss", "scene", "adversarial", "discriminator", "generator_gradient_norm", "discriminator_gradient_norm"}
    assert all(names <= entry.keys() for entry in entries)
    epoch = entries[-1]
    assert epoch["loss"] == pytest.approx(sum(entry["loss"] for entry in steps[2:]) / 2)
    for entry in (entries[2], entries[5]):
        assert entry["validation"]["frames"] == 2 and len(entry["validation"]["ssc"]["iou"]) == 11
        assert entry["training"]["frames"] == 4 and len(entry["training"]["ssc"]["iou"]) == 11
        assert 0 < entry["validation_scene"] < 10
    _, model, metadata = read_weights(folder / "last.safetensors")
    assert model == config.model and (metadata["epoch"], metadata["step"]) == ("2", "4")
    best = max((entry["validation"]["ssc"]["miou"], entry["epoch"]) for entry in (entries[2], entries[5]))
    assert (100 * result.best.ssc_miou, result.best_epoch) == (pytest.approx(best[0]), best[1])
    text = format_result(result)
    assert text.startswith(f"best validation (epoch {best[1]}): SSC mIoU {best[0]:.1f} %, SC IoU ")
    assert f"constant-class baseline: SSC mIoU {100 * result.baseline.ssc_miou:.1f} %" in text


def test_packed_frames_on_the_device_give_the_same_run(
    uninterrupted: tuple[Path, RunResult], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    pack_set(FrameFolder(root, grid_shape=GRID), out, progress=False)
    result = make_run(with_keys(run_config(out), {"data.on_device": True}), tmp_path / "run").train()
    assert format_result(result) == format_result(uninterrupted[1])
    assert_same_run(tmp_path / "run", uninterrupted[0])


@pytest.mark.cuda
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_run_on_a_gpu_is_stopped_and_goes_on(root: Path, tmp_path: Path, mixed_precision: bool) -> None:
    changes = {"data.on_device": True, "training.mixed_precision": mixed_precision, "training.ema_decay": 0.9}
    options: dict[str, Any] = {"device": torch.device("cuda"), "show_progress": False}
    run = Run.new(with_keys(run_config(root), changes), tmp_path, **options)
    before_call(run, 3, interrupt)
    with pytest.raises(RunInterrupted, match="step 3"):
        run.train()
    run = Run.resume(load_config(tmp_path / "config.yaml"), tmp_path, **options)
    assert run.progress.step == 3 and run.game.networks.generator.training
    result = run.train()
    entries = lines_of(tmp_path)
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    # In float16 the first steps can be skipped until the scale fits; an epoch of skipped steps has no mean losses.
    trained_in = [entry["epoch"] for entry in steps if "skipped" not in entry]
    assert mixed_precision or trained_in == [1, 1, 2, 2]
    with_losses = [entry for entry in entries if entry["kind"] == "step" or entry["epoch"] in trained_in]
    assert all(0 < entry["scene"] < 10 for entry in with_losses)
    assert entries[-1].get("training", {"frames": 0})["frames"] == 2 * trained_in.count(2)
    assert entries[-1]["validation"]["frames"] == 2
    assert entries[-1]["peak_memory_mib"] > 0 and result.best.frames == 2


@pytest.mark.parametrize("step", [1, 2])
def test_run_stopped_within_an_epoch_goes_on_exactly(
    uninterrupted: tuple[Path, RunResult], root: Path, tmp_path: Path, step: int
) -> None:
    whole, result = uninterrupted
    folder = tmp_path / "run"
    run = make_run(run_config(root), folder)
    before_call(run, step, interrupt)
    with pytest.raises(RunInterrupted, match=f"step {step}"):
        run.train()
    assert lines_of(folder) == [entry for entry in lines_of(whole) if entry["step"] <= step][: len(lines_of(folder))]
    resumed = make_run(load_config(folder / "config.yaml"), folder, resume=True).train()
    assert_same_run(folder, whole)
    assert format_result(resumed) == format_result(result)


def test_run_stopped_between_epochs_goes_on_exactly(
    uninterrupted: tuple[Path, RunResult], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = uninterrupted
    run = make_run(run_config(root), tmp_path)
    score = run._score

    def interrupted_score(description: str) -> Validation:
        interrupt()
        return score(description)

    monkeypatch.setattr(run, "_score", interrupted_score)
    with pytest.raises(RunInterrupted, match="epoch 1"):
        run.train()
    torch.manual_seed(99)
    make_run(load_config(tmp_path / "config.yaml"), tmp_path, resume=True).train()
    assert_same_run(tmp_path, whole)


def test_run_that_died_goes_on_from_its_last_state(
    uninterrupted: tuple[Path, RunResult], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once between two saves, then between an epoch's line and its state; the state is one of an older version."""
    whole, _ = uninterrupted
    run = make_run(run_config(root), tmp_path)
    before_call(run, 4, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run.train()
    assert len(lines_of(tmp_path)) == 4
    state = load_state(tmp_path)  # of the end of epoch 1
    for name in ("sums", "num_summed", "counts", "seconds"):
        del state["progress"][name]
    del state["limit"]
    save_state(tmp_path, state)
    run = make_run(load_config(tmp_path / "config.yaml"), tmp_path, resume=True)
    monkeypatch.setattr(run.saves, "save_weights", lambda *_, **__: crash() if run.progress.epoch == 2 else None)
    with pytest.raises(RuntimeError, match="power cut"):
        run.train()
    make_run(load_config(tmp_path / "config.yaml"), tmp_path, resume=True).train()
    assert_same_run(tmp_path, whole)


def test_seconds_are_those_before_an_interruption_too_and_an_older_state_counts_what_is_left(
    root: Path, tmp_path: Path
) -> None:
    config = run_config(root)
    run = make_run(config, tmp_path)
    before_call(run, 1, interrupt)
    with pytest.raises(RunInterrupted):
        run.train()
    state = load_state(tmp_path)
    assert state["progress"].pop("counts")["frames"] == 2  # an older version did not count
    assert 0 < state["progress"]["seconds"] < 1000
    state["progress"]["seconds"] += 1000
    save_state(tmp_path, state)
    make_run(config, tmp_path, resume=True).train()
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, second = (entry for entry in entries if entry["kind"] == "epoch")
    assert 1000 < first["seconds"] < 2000 and second["seconds"] < 1000
    assert first["training"]["frames"] == 2 and load_state(tmp_path)["progress"]["seconds"] == 0
    state["progress"]["counts"] = {"unknown": 1}
    save_state(tmp_path, state)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        make_run(config, tmp_path, resume=True)


def test_accumulation_goes_on_exactly_and_drops_the_incomplete_group(tmp_path: Path) -> None:
    config = run_config(tiny_set(tmp_path / "set", frames=12), accumulate=2, epochs=1)
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    run = make_run(config, folders[0])
    assert run.steps_per_epoch == 2  # of five batches
    run.train()
    run = make_run(config, folders[1])
    before_call(run, 1, interrupt)
    with pytest.raises(RunInterrupted):
        run.train()
    make_run(config, folders[1], resume=True).train()
    assert_same_run(folders[1], folders[0])


def test_finished_run_says_its_result_again_and_can_be_prolonged(
    uninterrupted: tuple[Path, RunResult], root: Path, tmp_path: Path
) -> None:
    whole, result = uninterrupted
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    again = make_run(run_config(root), folder, resume=True).train()
    assert format_result(again) == format_result(result)
    assert lines_of(folder) == lines_of(whole)
    longer = make_run(run_config(root, epochs=3), folder, resume=True).train()
    assert lines_of(folder)[:6] == lines_of(whole) and lines_of(folder)[-1]["epoch"] == 3
    assert longer.best.ssc_miou >= result.best.ssc_miou
    with pytest.raises(ConfigError, match="training.epochs"):
        make_run(run_config(root), folder, resume=True)


def test_damaged_values_of_a_state_are_told_before_the_training_goes_on(tmp_path: Path) -> None:
    root, folder = tiny_set(tmp_path / "set"), tmp_path / "run"
    make_run(run_config(root), folder).train()
    folder.joinpath("state.previous.pt").unlink()
    whole = load_state(folder)
    places: list[tuple[Any, ...]] = [
        ("limit",),
        ("progress",),
        ("progress", "epoch"),
        ("progress", "num_summed"),
        ("random_cpu",),
        ("network",),
        *((game, "num_updates") for game in ("generator", "discriminator")),
        *(
            (game, "optimizer", "state", 3, name)
            for game in ("generator", "discriminator")
            for name in ("step", "exp_avg")
        ),
    ]
    rng = np.random.default_rng(0)
    for place in places:
        damages = [True, "x", -1.5, 10**400, [1], {"a": 1}, torch.zeros(0), torch.zeros(2, 3, dtype=torch.int64)]
        for damage in rng.permutation(len(damages))[:1]:
            state = copy.deepcopy(whole)
            holder: Any = state
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = damages[damage]
            save_state(folder, state)
            folder.joinpath("state.previous.pt").unlink(missing_ok=True)
            with pytest.raises(CheckpointError, match=str(folder)):
                make_run(run_config(root, epochs=3), folder, resume=True)


@pytest.mark.parametrize("may_change", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "is_kept"),
    [
        ("model.width", 16, True),
        ("training.batch_size", 1, True),
        ("training.seed", 1, True),
        ("adversarial.enabled", False, True),
        ("loss.label_smoothing", 0.0, False),
        ("data.root", "elsewhere", False),
        ("optimizer.learning_rate", 2e-3, False),
        ("training.ema_decay", 0.9, False),
    ],
)
def test_resumed_run_keeps_what_decides_what_is_trained(
    root: Path, tmp_path: Path, key: str, value: Any, is_kept: bool, may_change: bool
) -> None:
    config, saved = with_keys(run_config(root), {key: value}), run_config(root).model_dump(mode="json")
    if may_change and not is_kept:
        (change,) = check_same_run(config, saved, folder=tmp_path, may_change=True)
        assert (change["key"], change["now"]) == (key, value)
        return
    with pytest.raises(ConfigError, match=f"{key}: .*{'initial_weights' if is_kept else 'may_change'}"):
        check_same_run(config, saved, folder=tmp_path, may_change=may_change)


def test_changes_are_taken_on_request_and_recorded(
    uninterrupted: tuple[Path, RunResult], root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted[0], folder)
    changes = {"optimizer.learning_rate": 2e-3, "loss.label_smoothing": 0.0, "training.epochs": 3}
    run = make_run(with_keys(run_config(root), changes), folder, resume=True, may_change=True)
    step, saved = run.game.step, []

    def recorded_step(*arguments: Any, **options: Any) -> StepReport:
        saved.append(load_state(folder)["config"]["optimizer"]["learning_rate"])
        return step(*arguments, **options)

    run.game.step = recorded_step  # type: ignore[method-assign]
    run.train()
    assert saved[0] == 2e-3  # before the first step: if the process is killed in it, the run can be resumed
    expected = [
        {"key": "loss.label_smoothing", "before": 0.2, "now": 0.0},
        {"key": "optimizer.learning_rate", "before": 1e-3, "now": 2e-3},
    ]
    assert load_state(folder)["changes"] == expected
    assert lines_of(folder)[6:8] == [{"kind": "change", "step": 4, **change} for change in expected]
    # Going on with the changed configuration is no further change.
    make_run(with_keys(run_config(root), {**changes, "training.epochs": 4}), folder, resume=True).train()
    assert load_state(folder)["changes"] == expected
    assert sum(entry["kind"] == "change" for entry in lines_of(folder)) == 2


def test_limit_is_remembered(root: Path, tmp_path: Path) -> None:
    config = run_config(root, epochs=1)
    run = make_run(config, tmp_path, limit=2)
    assert (run.training_set.ids, run.validation_set.ids) == (["0001", "0002"], ["0005", "0006"])
    result = run.train()
    scores = lines_of(tmp_path)[-1]
    assert scores["training"]["subset"] == scores["validation"]["subset"] == "first 2 frames"
    assert format_result(result).count("(first 2 frames)") == 2
    assert "best (first 2 frames)" in table_html({"best": scores["validation"]})
    assert len(make_run(config, tmp_path, resume=True).training_set) == 2
    with pytest.raises(CheckpointError, match=r"\[2, 2\] .*\[4, 2\]"):
        make_run(config, tmp_path, resume=True, limit=100)
    with pytest.raises(ConfigError, match="training.batch_size"):
        make_run(config, tmp_path, limit=1)


def scores_of(miou: float) -> Scores:
    confusion = torch.zeros(12, 12, dtype=torch.int64)
    if not math.isnan(miou):
        confusion[1, 1], confusion[1, 0] = round(100 * miou), 100 - round(100 * miou)
    return scores_from_counts(confusion, torch.ones(2, 2, dtype=torch.int64), frames=2)


@pytest.mark.parametrize(
    ("mious", "every", "best"),
    [([0.1, 0.3, 0.2], 1, 2), ([math.nan, 0.3, 0.3], 1, 2), ([0.1, 0.2, 0.3], 2, 3), ([math.nan] * 3, 1, 1)],
)
def test_best_weights_are_those_of_the_best_validation(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mious: list[float], every: int, best: int
) -> None:
    run = make_run(run_config(root, epochs=3, validate_every=every), tmp_path, limit=2)
    monkeypatch.setattr(run, "_train_epoch", lambda **_: None)
    monkeypatch.setattr(run, "_score", lambda description: Validation(scores_of(mious[run.progress.epoch]), 1.0))
    result = run.train()
    assert result.best_epoch == best
    assert result.best.ssc_miou == pytest.approx(scores_of(mious[best - 1]).ssc_miou, nan_ok=True)
    assert read_weights(tmp_path / "best.safetensors")[2]["epoch"] == str(best)
    assert read_weights(tmp_path / "last.safetensors")[2]["epoch"] == "3"
    validated = [entry["epoch"] for entry in lines_of(tmp_path) if "validation" in entry]
    assert validated == ([1, 2, 3] if every == 1 else [2, 3])


def test_last_weights_are_saved_without_validation_too(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(run_config(root, epochs=3, validate_every=3), tmp_path, limit=2)
    epochs = []
    save = run.saves.save_state

    def record(parts: RunParts) -> None:
        # The third time before the validation, of the state alone.
        epochs.append(read_weights(tmp_path / "last.safetensors")[2]["epoch"])
        save(parts)

    monkeypatch.setattr(run, "_train_epoch", lambda **_: None)
    monkeypatch.setattr(run.saves, "save_state", record)
    run.train()
    assert epochs == ["1", "2", "2", "3"]


def test_state_is_saved_within_an_epoch_after_some_minutes(root: Path, tmp_path: Path) -> None:
    run = make_run(run_config(root, checkpoint_minutes=1e-9), tmp_path)
    before_call(run, 2, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run.train()
    assert load_state(tmp_path)["progress"]["batches_done"] == 1


def test_state_is_not_saved_after_every_short_epoch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first validation, as there is none yet, and after the last; a run that died goes on from there."""
    monkeypatch.setattr(run_folder, "SECONDS_BETWEEN_SAVES", 1000.0)
    config, whole = run_config(root, epochs=4), tmp_path / "whole"
    epochs = []
    monkeypatch.setattr(
        run_folder,
        "save_state",
        lambda folder, state: (epochs.append(state["progress"]["epoch"]), save_state(folder, state)),
    )
    make_run(config, whole).train()
    assert epochs == [0, 4]
    run = make_run(config, tmp_path / "died")
    before_call(run, 6, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run.train()
    progress = load_state(tmp_path / "died")["progress"]
    assert (progress["epoch"], progress["batches_done"]) == (0, 2)
    make_run(config, tmp_path / "died", resume=True).train()
    assert_same_run(tmp_path / "died", whole)


def test_diverged_run_says_so_and_keeps_its_last_state(root: Path, tmp_path: Path) -> None:
    config = with_keys(run_config(root), {"optimizer.learning_rate": 1e30})
    with pytest.raises(DivergenceError, match="step 3 .*optimizer.learning_rate"):
        make_run(config, tmp_path).train()
    assert not (tmp_path / "state.pt").exists()
    steps = [entry for entry in lines_of(tmp_path) if entry["kind"] == "step"]
    assert [(entry["step"], entry["skipped"]) for entry in steps] == [(1, True), (2, True), (3, True)]


def test_half_precision_forgives_gradients_that_overflow_but_not_losses(root: Path, tmp_path: Path) -> None:
    run = make_run(run_config(root), tmp_path)
    run.config = with_keys(run.config, {"training.mixed_precision": True})  # of which only the judgement is tried
    step, overflowing = run.game.step, ["generator_gradient_norm"]

    def overflow(*arguments: Any, **options: Any) -> StepReport:
        if run.progress.step == 2:
            overflowing.append("scene")
        report = step(*arguments, **options)
        report.values.update(dict.fromkeys(overflowing, torch.tensor(math.inf).double()))
        return report

    run.game.step = overflow  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match=r"step 3 .*: scene.*training.mixed_precision"):
        run.train()
    assert lines_of(tmp_path)[0]["generator_gradient_norm"] is None and load_state(tmp_path)["progress"]["step"] == 2


def test_second_ctrl_c_stops_at_once_and_handlers_return() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        interrupt()
        assert stop.is_set
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by the process that started this one
        interrupt()
    assert signal.getsignal(signal.SIGINT) == handler


def test_broken_frames_are_all_named_before_training(root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "set"
    shutil.copytree(root, broken)
    (broken / "TSDF" / "0003.npz").write_bytes(b"nonsense")
    np.savez(broken / "Label" / "0006.npz", np.zeros(5, dtype=np.uint8))
    (broken / "Mapping" / "0005.npz").unlink()
    with pytest.raises(DataError) as error:
        make_run(run_config(broken), tmp_path / "run")
    assert all(f"{name}.npz" in str(error.value) for name in ("TSDF/0003", "Label/0006", "Mapping/0005"))
    assert not (tmp_path / "run").exists()


def test_sets_without_what_the_network_needs_are_refused(root: Path, tmp_path: Path) -> None:
    copied = tmp_path / "set"
    shutil.copytree(root, copied)
    write_list(copied / "test.txt", ["0654"])  # never downloaded, and not needed
    shutil.rmtree(copied / "Seg2D")
    with pytest.raises(DataError, match="model.image_encoder"):
        make_run(run_config(copied), tmp_path / "run")
    tsdf_only = with_keys(run_config(copied), {"model.inputs": "tsdf"})
    assert make_run(tsdf_only, tmp_path / "run").training_set[0].label_map is None
    shutil.rmtree(copied / "Label")
    with pytest.raises(DataError, match="Label"):
        make_run(tsdf_only, tmp_path / "run")
    with pytest.raises(DataError, match="nowhere"):
        make_run(with_keys(tsdf_only, {"data.root": str(tmp_path / "nowhere")}), tmp_path / "run")
    with pytest.raises(DataError, match="TSDF"):
        make_run(with_keys(run_config(root), {"model.grid_shape": [24, 12, 24]}), tmp_path / "run")
    with pytest.raises(DataError, match="model.num_classes"):
        make_run(with_keys(run_config(root), {"model.num_classes": 13}), tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"training.mixed_precision": True}, "training.mixed_precision: .*CUDA"),
        ({"model.num_label_map_classes": 13}, "model.num_label_map_classes"),
        ({"model.freeze_encoders": True}, "model.freeze_encoders: .*initial_weights"),
        ({"model.image_encoder": "segformer_b2"}, "model.image_encoder_weights"),
        ({"data.cache_features": True}, "data.cache_features: .*model.image_encoder"),
        ({"data.cache_features": True, "model.image_encoder": "resnet50"}, "data.cache_features: .*data.augment_2d"),
        ({"optimizer.warmup_steps": 4}, "optimizer.warmup_steps: .*4 steps"),
    ],
)
def test_what_cannot_run_is_refused(root: Path, tmp_path: Path, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_run(with_keys(run_config(root), keys), tmp_path)


def test_fine_tuning_starts_from_the_weights_and_frozen_encoders_stay(
    uninterrupted: tuple[Path, RunResult], root: Path, tmp_path: Path
) -> None:
    weights = uninterrupted[0] / "best.safetensors"
    config = with_keys(run_config(root, epochs=1), {"model.inputs": "tsdf", "model.freeze_encoders": True})
    run = make_run(config, tmp_path, initial_weights=weights)
    run.train()
    given, trained = read_weights(weights)[0], run.game.networks.state_dict()
    of_encoder = {name for name in trained if name.startswith("tsdf_encoder.")}
    assert of_encoder and all(torch.equal(trained[name], given[name]) for name in of_encoder)
    assert not torch.equal(trained["decoder.classifier.weight"], given["decoder.classifier.weight"])


def test_the_device_of_a_run_becomes_the_current_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else is made on it: spconv computes on the stream of the current device."""

    class Chosen(Exception):
        pass

    def choose(device: torch.device) -> None:
        raise Chosen(str(device))

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    with pytest.raises(Chosen, match="cuda:1"):
        Run.new(run_config(root), tmp_path / "run", device=torch.device("cuda:1"))
