"""`ammnet train` as people use it: train, stop, resume, fine-tune, mistype."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ammnet_sparse.cli import train as command
from ammnet_sparse.config import describe_keys, load_config
from ammnet_sparse.data import training_sets
from ammnet_sparse.data.synthetic.generate import RoomsError
from ammnet_sparse.training import records
from ammnet_sparse.training.game import AdversarialGame
from tests.training.support import tiny_set

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "train.py"
TINY = [
    "model.width=8",
    "model.stem_widths=[3,8]",
    "model.grid_shape=[12,12,12]",
    "model.discriminator_width=8",
    "training.epochs=1",
    "training.batch_size=2",
]
Tool = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def train() -> Tool:
    return lambda arguments: command.main(["--device", "cpu", *arguments])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "picture_of", lambda network, batch: np.zeros((4, 4, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def finished(train: Tool, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "picture_of", lambda network, batch: np.zeros((4, 4, 3), dtype=np.uint8))
        assert train(["--output", str(folder), f"data.root={root}", *TINY]) == 0
    return folder


@pytest.fixture
def refuse(train: Tool, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the tool, which must end with exit code 2 and one message, and returns the message."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert train(list(arguments)) == 2
        output = capsys.readouterr()
        (message,) = output.err.split("ammnet train: ")[1:]
        assert "Traceback" not in output.err and "best validation" not in output.out
        return message

    return run


def test_last_line_compares_the_best_epoch_with_the_baseline(
    train: Tool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["--output", str(folder), *TINY, f"data.root={root}", "training.recompute=blocks"]
    assert train(arguments) == 0
    first, *_, weights, last = capsys.readouterr().out.splitlines()
    assert first == (f"Training in {folder}: 4 training and 2 validation frames of {root}, 1 epochs of 2 steps on cpu")
    assert weights == f"Best weights: {folder / 'best.safetensors'}"
    entry = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    validation = entry["validation"]
    expected = f"SSC mIoU {validation['ssc']['miou']:.1f} %, SC IoU {validation['sc']['iou']:.1f} %"
    assert last.startswith(f"best validation (epoch 1): {expected}; constant-class baseline: SSC mIoU ")
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "last.safetensors", "best.safetensors"}
    assert any((folder / "tensorboard").iterdir())


def test_last_weights_are_those_to_use_where_validation_frames_are_trained_on(
    train: Tool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    keys = ["data.train_on_all=true", "model.image_encoder_weights=b2.pth"]
    with pytest.warns(UserWarning, match="model.image_encoder_weights: changes nothing, as with .*=seg2d no color"):
        assert train(["--output", str(folder), *TINY, f"data.root={root}", *keys]) == 0
    printed = capsys.readouterr().out
    assert "6 training and 2 validation frames (among those) of" in printed
    assert "Best weights" not in printed and f"Last weights: {folder / 'last.safetensors'}" in printed


def test_saved_configuration_is_resolved(finished: Path, root: Path) -> None:
    default = load_config(SCRIPT.parents[1] / "configs" / "default.yaml", [*TINY, f"data.root={root}"])
    saved = load_config(finished / "config.yaml")
    assert saved == default
    assert saved.data.root is not None and saved.data.root.is_absolute()


def test_relative_folders_can_be_resumed_from_anywhere(
    train: Tool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    folder = tmp_path / "run"
    assert train(["--output", str(folder), f"data.root={root.name}", *TINY, "--limit", "2"]) == 0
    monkeypatch.chdir(tmp_path)
    assert train(["--resume", "run", "training.epochs=2"]) == 0
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["step", "epoch"] * 2


def test_default_folder_is_named_by_the_time(
    train: Tool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(["--limit", "2", f"data.root={root}", *TINY, "adversarial.enabled=false"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "best.safetensors").is_file()


def test_generated_rooms_are_the_default_data(
    train: Tool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ensure(config: Any) -> Path:
        asked.append(config.synthetic.frames)
        return root

    monkeypatch.setattr(training_sets, "ensure_rooms", ensure)
    assert train(["--output", str(tmp_path / "run"), *TINY, "--limit", "2"]) == 0
    assert asked == [240]
    assert load_config(tmp_path / "run" / "config.yaml").data.root == root


def test_what_fails_anyway_fails_before_rooms_are_made(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensure(config: Any) -> Path:
        raise AssertionError("rooms were made")

    monkeypatch.setattr(training_sets, "ensure_rooms", ensure)
    assert "fp16 needs a CUDA device, found cpu" in refuse("training.mixed_precision=true")
    assert "--init-from absent.safetensors: expected a file" in refuse("--init-from", "absent.safetensors")
    assert "needs ImageNet weights" in refuse("model.image_encoder=segformer_b2")

    def fail(config: Any) -> Path:
        raise RoomsError("data/rooms: holds something else")

    monkeypatch.setattr(training_sets, "ensure_rooms", fail)
    assert refuse() == "data/rooms: holds something else\n"


def test_mistakes_get_one_message(refuse: Callable[..., str], finished: Path, root: Path, tmp_path: Path) -> None:
    data, output = f"data.root={root}", ["--output", str(tmp_path / "new")]
    assert "training.epoch: unknown key; did you mean training.epochs?" in refuse("training.epoch=3")
    assert "expected key.sub=value" in refuse("training.epochs")
    assert "absent.yaml: cannot read" in refuse("--config", "absent.yaml")
    assert "nowhere: expected the folder of a set, found nothing" in refuse(f"data.root={tmp_path / 'nowhere'}")
    assert "12, 12" in refuse(data, *output, *TINY, "model.grid_shape=[24,12,12]")
    assert "lower it" in refuse(data, *output, *TINY, "training.batch_size=5")
    assert "found 1 training frames" in refuse(data, *output, *TINY, "--limit", "1")
    assert not (tmp_path / "new").exists()

    assert f"holds a run already; continue it with --resume {finished}" in refuse("--output", str(finished))
    (tmp_path / "notes.txt").write_text("mine")
    assert "expected a new or empty folder, found files in it" in refuse("--output", str(tmp_path))
    assert "expected a folder, found a file" in refuse("--output", str(tmp_path / "notes.txt"))

    assert "config.yaml: expected the configuration of a run" in refuse("--resume", str(tmp_path))
    shutil.copy(finished / "config.yaml", tmp_path)
    assert "state.pt: expected the state of an interrupted run" in refuse("--resume", str(tmp_path))
    assert "omit --config, --out, --init-from" in refuse("--resume", str(finished), *output)
    both = ("--init-from", "nyu_seg2d_w64", "--init-shared", "nyu_seg2d_w64")
    assert "--init-from, --init-shared: expected one of them, found both" in refuse(data, *output, *both)
    assert "--init-shared absent.safetensors: expected a file" in refuse(data, "--init-shared", "absent.safetensors")
    assert "model.width: a resumed run keeps 8, found 16" in refuse("--resume", str(finished), "model.width=16")


def test_mistakes_in_the_device_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    count = torch.cuda.device_count()
    for device, message in ((f"cuda:{count}", f"found 'cuda:{count}'"), ("gpu", "expected cpu, cuda or cuda:0")):
        assert command.main(["--device", device]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "expected a whole number of at least 1, found '0'"),
        (["--limit", "few"], "found 'few'"),
        (["--training.epochs=3"], "configuration keys have no dashes: training.epochs=3"),
        (["--epochs", "3"], "unrecognized arguments: --epochs"),
        (["--res", "x"], "unrecognized arguments: --res"),
    ],
)
def test_mistakes_in_options_show_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_lists_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for key in describe_keys():
        assert f"  {key.name} ({key.kind}; " in text and f"): {key.meaning}" in text
    assert "training.epochs (int >= 1; 150): passes over the training frames" in text
    assert "data.root (path or empty; empty): " in text
    assert "adversarial.erase_probability ([float, float]; [0.1, 0.9]): " in text
    for option in ("--config", "--out", "--output", "--device", "--resume", "--change", "--init-from", "--limit"):
        assert option in text


def test_fine_tuning(train: Tool, refuse: Callable[..., str], finished: Path, root: Path, tmp_path: Path) -> None:
    weights, data = ["--init-from", str(finished / "best.safetensors")], f"data.root={root}"
    message = refuse(*weights, data, *TINY, "model.width=16", "--output", str(tmp_path / "wide"))
    assert "set model.width=8\n" in message and str(finished / "best.safetensors") in message
    arguments = [*weights, data, *TINY, "--limit", "2", "model.sites=dense", "--output", str(tmp_path / "dense")]
    assert train(arguments) == 0
    assert load_config(tmp_path / "dense" / "config.yaml").model.sites == "dense"


def test_failures_within_training_say_how_to_go_on(
    train: Tool, finished: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def fail(error: BaseException) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            raise error

        return step

    longer = ["--resume", str(folder), "training.epochs=2"]
    how = f"\ncontinue with: ammnet train --resume {folder}\n"
    monkeypatch.setattr(AdversarialGame, "step", fail(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")))
    assert train(longer) == 1
    message = capsys.readouterr().err
    assert "ammnet train: out of memory: CUDA out of memory. Tried\n" in message
    assert "training.recompute=elementwise" in message
    assert message.endswith(how)
    monkeypatch.setattr(AdversarialGame, "step", fail(KeyboardInterrupt()))
    assert train(longer) == 130
    assert capsys.readouterr().err.endswith(f"ammnet train: interrupted{how}")
    monkeypatch.setattr(AdversarialGame, "step", fail(KeyboardInterrupt()))
    assert train(["--output", str(tmp_path / "new"), f"data.root={root}", *TINY]) == 130
    assert capsys.readouterr().err.endswith("ammnet train: interrupted\nno state had been saved yet\n")
    monkeypatch.setattr(AdversarialGame, "step", fail(OSError(28, "No space left on device")))
    assert train(longer) == 2
    assert f"ammnet train: {folder}: No space left on device; free some space" in (message := capsys.readouterr().err)
    assert message.endswith(how)


def test_terminated_process_saves_and_is_resumed(finished: Path, root: Path, tmp_path: Path, train: Tool) -> None:
    """A process of its own, with two of them for the frames, as a job scheduler would stop it."""
    folder = tmp_path / "run"
    arguments = [f"data.root={root}", *TINY, "training.epochs=500", "data.workers=2", "training.validate_every=500"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--output", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Training in ")
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.endswith(f"continue with: ammnet train --resume {folder}\n") and "Traceback" not in errors
    steps = sum(json.loads(line)["kind"] == "step" for line in (folder / "metrics.jsonl").read_text().splitlines())
    epochs = steps // 2 + 1
    assert train(["--resume", str(folder), f"training.epochs={epochs}", "data.workers=0"]) == 0
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "step"] == list(range(1, 2 * epochs + 1))


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A training in a process group of its own, as schedulers start it; returns after its first step."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_a_terminated_process_group_saves_and_is_resumed(root: Path, tmp_path: Path, train: Tool) -> None:
    """The signal ends the processes that load frames at once."""
    folder = tmp_path / "run"
    process = start(folder, f"data.root={root}", *TINY, "training.epochs=500", "data.workers=2")
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.endswith(f"continue with: ammnet train --resume {folder}\n") and "Traceback" not in errors
    assert train(["--resume", str(folder), "training.epochs=500", "--change", "data.workers=0", "--limit", "2"]) == 2
    assert (folder / "state.pt").is_file()


def test_a_killed_worker_ends_the_run_with_its_state(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, f"data.root={root}", *TINY, "training.epochs=500", "data.workers=1")
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "a process that loads frames has failed" in errors and "data.workers=0" in errors
    assert errors.endswith(f"continue with: ammnet train --resume {folder}\n") and "Traceback" not in errors


def test_two_runs_of_one_second_have_folders_of_their_own(
    train: Tool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_name_of_now", lambda: "2026-01-31_120000")
    for _ in range(2):
        assert train(["--limit", "2", f"data.root={root}", *TINY, "adversarial.enabled=false"]) == 0
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["2026-01-31_120000", "2026-01-31_120000_2"]
    assert train(["--limit", "1", f"data.root={root}", *TINY]) == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == folders, "a folder of a run that never was"


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.9])
def test_a_cut_configuration_is_taken_from_the_state(
    train: Tool, finished: Path, tmp_path: Path, share: float | None
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    expected = load_config(finished / "config.yaml", ["training.epochs=2"])
    if share is None:
        (folder / "config.yaml").unlink()
    else:
        content = (folder / "config.yaml").read_bytes()
        (folder / "config.yaml").write_bytes(content[: int(share * len(content))])
    with pytest.warns(UserWarning, match=r"config\.yaml.*; the configuration in the run's state is taken"):
        assert train(["--resume", str(folder), "training.epochs=2"]) == 0
    assert load_config(folder / "config.yaml") == expected


def test_fine_tuning_the_shipped_weights_by_name(refuse: Callable[..., str], root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    message = refuse("--init-from", "nyu_seg2d_w64", f"data.root={root}", *TINY, "--out", out)
    assert "nyu_seg2d_w64" in message and "set model.width=64 model.stem_widths=[3,64]" in message


def test_a_run_goes_on_with_its_set_in_another_place(
    finished: Path, root: Path, tmp_path: Path, train: Tool, refuse: Callable[..., str]
) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(root), str(tmp_path / "gone")))
    message = refuse("--resume", str(folder), "training.epochs=2")
    assert "expected its set" in message and message.endswith("add data.root=PATH --change\n")
    shutil.copytree(root, moved)
    assert train(["--resume", str(folder), "training.epochs=2", f"data.root={moved}", "--change"]) == 0
