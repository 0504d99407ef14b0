"""What happens to runs: locks, unusable frames, steps that are not finite, workers and validations that fail."""

import dataclasses
import json
import math
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ammnet_sparse.config import Config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.weights.files import lists_trained_on, read_weights
from ammnet_sparse.training.checkpoints import CheckpointError, load_state
from ammnet_sparse.training.records import RunResult
from ammnet_sparse.training.run_folder import FolderLock, create_run_folder
from tests.data.frames import random_frame, write_frame, write_list
from tests.training.support import differing, lines_of, make_run, tiny_config

pytestmark = pytest.mark.usefixtures("quick_pictures")
WIDE_GRID = (24, 12, 24)
"""The discriminator leaves more than one cell of it, as normalization of a single frame needs."""


def run_config(root: Path, *, data: dict[str, Any] | None = None, **training: Any) -> Config:
    """An epoch of two steps of two frames."""
    values = {"epochs": 1, "batch_size": 2, **training}
    return tiny_config(data={"root": str(root), **(data or {})}, training=values)


def hold(folder: Path, ready: Any, done: Any) -> None:
    lock = FolderLock(folder)
    ready.set()
    done.wait(60)
    lock.release()


def test_one_process_writes_a_folder_and_a_dead_one_holds_nothing(root: Path, tmp_path: Path) -> None:
    make_run(run_config(root), tmp_path).train()
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(120)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*{other.pid}"):
        make_run(run_config(root), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        make_run(run_config(root), tmp_path).train()
    other.kill()
    other.join()
    make_run(run_config(root, epochs=2), tmp_path, resume=True).train()
    (tmp_path / "state.pt.a1_b2c3d.unfinished").touch()
    (tmp_path / "notes.unfinished").touch()
    FolderLock(tmp_path).release()
    assert {path.name for path in tmp_path.glob("*.unfinished")} == {"notes.unfinished"}


def test_folders_of_one_name_are_each_made_once(tmp_path: Path) -> None:
    made = [create_run_folder(tmp_path / "runs", "2026-01-31_120000") for _ in range(3)]
    assert [folder.name for folder in made] == ["2026-01-31_120000", "2026-01-31_120000_2", "2026-01-31_120000_3"]


def degenerate_set(root: Path) -> Path:
    """Frames 1-4 for training and 5-6 for validation, of which 2 and 5 have no hit, 3 and 6 no scored voxel."""
    ids = [f"{number:04d}" for number in range(1, 7)]
    for seed, frame_id in enumerate(ids):
        frame = random_frame(seed, frame_id=frame_id, grid_shape=WIDE_GRID, has_label_map=True)
        if frame_id in ("0002", "0005"):
            frame = dataclasses.replace(frame, mapping=np.full_like(frame.mapping, -1))
        if frame_id in ("0003", "0006"):
            frame = dataclasses.replace(frame, label_weight=np.zeros_like(frame.label_weight))
        write_frame(root, frame)
    write_list(root / "train.txt", ids)
    write_list(root / "val.txt", ids[-2:])
    return root


def degenerate_config(root: Path, **options: Any) -> Config:
    config = run_config(root, **options)
    return config.model_copy(update={"model": config.model.model_copy(update={"grid_shape": WIDE_GRID})})


@pytest.mark.parametrize(("batch_size", "on_device"), [(1, False), (2, True)])
def test_frames_that_nothing_can_be_learned_from_are_left_out(tmp_path: Path, batch_size: int, on_device: bool) -> None:
    root = degenerate_set(tmp_path / "set")
    config = degenerate_config(root, data={"on_device": on_device}, batch_size=batch_size, epochs=2)
    run = make_run(config, tmp_path / "run")
    trained: list[tuple[str, ...]] = []
    step = run.game.step

    def record(batches: list[Batch], **options: Any) -> Any:
        trained.extend(batch.frame_ids for batch in batches)
        return step(batches, **options)

    run.game.step = record  # type: ignore[method-assign, assignment]
    with pytest.warns(UserWarning, match="left out of training") as caught:
        run.train()
    assert {name for names in trained for name in names} == {"0001", "0004"}
    said = sorted(str(warning.message) for warning in caught if "left out of training" in str(warning.message))
    assert [text.split()[1] for text in said] == ["0002", "0003"]  # each once
    validation = lines_of(tmp_path / "run")[-1]["validation"]
    assert validation["frames"] == 1 and validation["left_out"] == ["0006"] and validation["without_hits"] == ["0005"]
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_a_list_without_a_usable_frame_is_refused(tmp_path: Path) -> None:
    root = degenerate_set(tmp_path / "set")
    write_list(root / "train.txt", ["0002", "0003", "0005", "0006"])
    run = make_run(degenerate_config(root), tmp_path / "run")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="set"),
    ):
        run.train()


@pytest.mark.parametrize("happening", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_nothing(root: Path, tmp_path: Path, happening: str) -> None:
    run = make_run(run_config(root, epochs=2), tmp_path)
    predict, states, calls = run.game._predict, [], []
    optimizer = run.game.generator_optimization.optimizer

    def broken(scene: Any) -> Any:
        calls.append(1)
        prediction = predict(scene)
        if len(calls) != 2:
            return prediction
        logits = prediction.voxel_logits
        if happening == "loss":
            with torch.no_grad():  # as a value that is not finite does on its way
                for name, buffer in run.game.networks.generator.named_buffers():
                    if name.endswith("running_mean"):
                        buffer.fill_(math.nan)
            logits = logits * math.nan
        else:
            logits.register_hook(lambda gradient: gradient * math.inf)
        return dataclasses.replace(prediction, voxel_logits=logits)

    run.game._predict = broken  # type: ignore[method-assign]
    step = run._step

    def record(*arguments: Any, **options: Any) -> Any:
        before = {name: value.clone() for name, value in run.game.networks.generator.state_dict().items()}
        moments = {id(key): float(value["step"]) for key, value in optimizer.state.items()}
        losses = step(*arguments, **options)
        after = run.game.networks.generator.state_dict()
        same_moments = moments == {id(key): float(value["step"]) for key, value in optimizer.state.items()}
        states.append((differing(before, after), same_moments))
        return losses

    run._step = record  # type: ignore[method-assign]
    run.train()
    changed = [len(names) > 0 for names, _ in states]
    assert changed[0] and changed[2] and changed[3] and states[1][1] and not states[2][1]
    names = {name for name in states[1][0] if "running" not in name and "num_batches" not in name}
    assert names == set(), "the parameters of the skipped step"
    if happening == "loss":
        assert states[1][0] == set(), "its running statistics"
    steps = [line for line in lines_of(tmp_path) if line["kind"] == "step"]
    assert [line.get("skipped", False) for line in steps] == [False, True, False, False]
    assert run.progress.skipped == 1 and load_state(tmp_path)["progress"]["skipped"] == 1
    weights = read_weights(tmp_path / "last.safetensors")[0]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert all(math.isfinite(value) for value in (steps[2]["loss"], steps[3]["loss"]))


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory, quick_pictures: None) -> tuple[Path, RunResult]:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, make_run(run_config(root), folder).train()


def test_errors_between_steps_leave_a_state_that_goes_on_exactly(
    whole: tuple[Path, RunResult], root: Path, tmp_path: Path
) -> None:
    run = make_run(run_config(root), tmp_path / "run")
    loader = run._training_loader

    def breaking() -> Any:
        yield next(iter(loader()))
        raise DataError("0003: damaged")

    run._training_loader = breaking  # type: ignore[method-assign]
    with pytest.raises(DataError):
        run.train()
    assert load_state(tmp_path / "run")["progress"]["batches_done"] == 1
    make_run(run_config(root), tmp_path / "run", resume=True).train()
    assert not differing(*(load_state(folder)["network"] for folder in (whole[0], tmp_path / "run")))


def test_a_validation_that_fails_leaves_the_epoch_and_is_made_up_for(
    whole: tuple[Path, RunResult], root: Path, tmp_path: Path
) -> None:
    run = make_run(run_config(root), tmp_path / "run")

    def fail(description: str) -> Any:
        raise MemoryError

    run._score = fail  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        run.train()
    progress = load_state(tmp_path / "run")["progress"]
    assert (progress["epoch"], progress["step"], progress["batches_done"]) == (0, 2, 2)
    assert make_run(run_config(root), tmp_path / "run", resume=True).train() == whole[1]
    assert lines_of(whole[0]) == lines_of(tmp_path / "run")


def test_weights_say_what_they_were_trained_on(root: Path, tmp_path: Path) -> None:
    make_run(run_config(root), tmp_path / "first").train()
    best = tmp_path / "first" / "best.safetensors"
    metadata = read_weights(best)[2]
    assert metadata["epoch"] == metadata["epochs"] == "1" and metadata["step"] == "2" and metadata["version"]
    assert metadata["data"] == "nyu, 4 training and 2 validation frames"
    values = json.loads(metadata["training_config"])
    assert values["training"]["batch_size"] == 2 and values["optimizer"]["learning_rate"] == 1e-3
    assert str(root) not in metadata["training_config"]
    assert json.loads(metadata["validation_scores"]) == lines_of(tmp_path / "first")[-1]["validation"]
    # Weights of the training frames are a start without a warning.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_run(run_config(root), tmp_path / "tuned", initial_weights=best)
    assert lists_trained_on(best) == {"train"}


def test_weights_name_the_lists_that_they_and_their_start_were_trained_on(root: Path, tmp_path: Path) -> None:
    make_run(run_config(root, data={"train_on_all": True}), tmp_path / "all").train()
    everything = tmp_path / "all" / "last.safetensors"
    assert lists_trained_on(everything) == {"train", "val"}
    with pytest.warns(UserWarning, match=r"all/last\.safetensors"):
        run = make_run(run_config(root), tmp_path / "tuned", initial_weights=everything)
    run.train()
    make_run(run_config(root, epochs=2), tmp_path / "tuned", resume=True).train()
    metadata = read_weights(tmp_path / "tuned" / "last.safetensors")[2]
    assert metadata["epoch"] == "2" and not json.loads(metadata["training_config"])["data"]["train_on_all"]
    assert metadata["trained_on"] == "train val"
