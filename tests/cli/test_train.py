"""`ammnet train` as people use it: train, stop, resume, fine-tune, mistype."""

import contextlib
import dataclasses
import io
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

import pytest
import torch

from ammnet_sparse.cli import train as command
from ammnet_sparse.config import load_config
from ammnet_sparse.data.synthetic import generate
from ammnet_sparse.training.game import AdversarialGame
from tests.training.support import TINY_KEYS

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "train.py"
TINY = [*TINY_KEYS, "training.epochs=1"]
pytestmark = pytest.mark.usefixtures("quick_pictures")


def train(arguments: list[str]) -> int:
    """The command on the CPU wherever the tests run; the last ``--device`` counts."""
    return command.main(["--device", "cpu", *arguments])


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run of one epoch, and what was printed."""

    folder: Path
    lines: list[str]


@pytest.fixture(scope="module")
def finished_run(root: Path, tmp_path_factory: pytest.TempPathFactory, quick_pictures: None) -> Finished:
    folder, printed = tmp_path_factory.mktemp("runs") / "finished", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train(["--output", str(folder), f"data.root={root}", *TINY]) == 0
    return Finished(folder, printed.getvalue().splitlines())


@pytest.fixture(scope="module")
def finished(finished_run: Finished) -> Path:
    return finished_run.folder


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the tool, which must end with exit code 2 and one message, and returns the message."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert train(list(arguments)) == 2
        output = capsys.readouterr()
        (message,) = output.err.split("ammnet train: ")[1:]
        assert "Traceback" not in output.err and "best validation" not in output.out
        return message

    return run


def test_a_run_says_its_scores_and_saves_its_resolved_configuration(finished_run: Finished, root: Path) -> None:
    folder = finished_run.folder
    first, *_, weights, last = finished_run.lines
    assert first == f"Training in {folder}: 4 training and 2 validation frames of {root}, 1 epochs of 2 steps on cpu"
    assert weights == f"Best weights: {folder / 'best.safetensors'}"
    validation = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    expected = f"SSC mIoU {validation['ssc']['miou']:.1f} %, SC IoU {validation['sc']['iou']:.1f} %"
    assert last.startswith(f"best validation (epoch 1): {expected}; constant-class baseline: SSC mIoU ")
    saved = load_config(folder / "config.yaml")
    assert saved == load_config(SCRIPT.parents[1] / "configs" / "default.yaml", [*TINY, f"data.root={root}"])
    assert saved.data.root is not None and saved.data.root.is_absolute()


def test_last_weights_are_those_to_use_where_validation_frames_are_trained_on(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    keys = ["data.train_on_all=true", "model.image_encoder_weights=b2.pth"]
    with pytest.warns(UserWarning, match="model.image_encoder_weights"):
        assert train(["--output", str(folder), *TINY, f"data.root={root}", *keys]) == 0
    printed = capsys.readouterr().out
    assert "6 training and 2 validation frames (among those)" in printed
    assert "Best weights" not in printed and f"Last weights: {folder / 'last.safetensors'}" in printed


def test_relative_folders_can_be_resumed_from_anywhere_and_with_a_moved_set(
    refuse: Callable[..., str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    folder, moved = tmp_path / "run", tmp_path / "moved"
    assert train(["--output", str(folder), f"data.root={root.name}", *TINY, "--limit", "2"]) == 0
    monkeypatch.chdir(tmp_path)
    assert train(["--resume", "run", "training.epochs=2"]) == 0
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(root), str(tmp_path / "gone")))
    message = refuse("--resume", "run", "training.epochs=3")
    assert "data.root" in message and "--change" in message
    shutil.copytree(root, moved)
    assert train(["--resume", "run", "training.epochs=3", f"data.root={moved}", "--change"]) == 0
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds == [*["step", "epoch"] * 2, "change", "step", "epoch"]


def test_generated_rooms_are_the_default_data(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ensure(config: Any) -> Path:
        asked.append(config.synthetic.frames)
        return root

    monkeypatch.setattr(generate, "ensure_rooms", ensure)
    assert train(["--output", str(tmp_path / "run"), *TINY, "--limit", "2"]) == 0
    assert asked == [240]
    assert load_config(tmp_path / "run" / "config.yaml").data.root == root


def test_what_fails_anyway_fails_before_rooms_are_made(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensure(config: Any) -> Path:
        raise AssertionError("rooms were made")

    monkeypatch.setattr(generate, "ensure_rooms", ensure)
    assert "training.mixed_precision: " in refuse("training.mixed_precision=true")
    assert "--init-from absent.safetensors: " in refuse("--init-from", "absent.safetensors")
    for name in ("nyu_seg2d", "table3/baseline"):  # they are for a real set
        message = refuse("--config", name)
        assert "data.root=PATH" in message and "--config default" in message and name in message
    assert "model.image_encoder_weights: " in refuse("model.image_encoder=segformer_b2")

    def fail(config: Any) -> Path:
        raise generate.RoomsError("data/rooms: holds something else")

    monkeypatch.setattr(generate, "ensure_rooms", fail)
    assert refuse() == "data/rooms: holds something else\n"


def test_mistakes_get_one_message(refuse: Callable[..., str], finished: Path, root: Path, tmp_path: Path) -> None:
    data, output = f"data.root={root}", ["--output", str(tmp_path / "new")]
    assert "training.epochs" in refuse("training.epoch=3")
    assert "absent.yaml" in refuse("--config", "absent.yaml")
    assert str(tmp_path / "nowhere") in refuse(f"data.root={tmp_path / 'nowhere'}")
    assert "12, 12" in refuse(data, *output, *TINY, "model.grid_shape=[24,12,12]")
    for more in (["training.batch_size=5"], ["--limit", "1"]):
        assert "training.batch_size: " in refuse(data, *output, *TINY, *more)
    assert not (tmp_path / "new").exists()

    assert f"--resume {finished}" in refuse("--output", str(finished))
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        assert f"--out {place}: " in refuse("--output", str(place))

    assert "config.yaml" in refuse("--resume", str(tmp_path))
    shutil.copy(finished / "config.yaml", tmp_path)
    assert "state.pt" in refuse("--resume", str(tmp_path))
    assert "--resume: " in refuse("--resume", str(finished), *output)
    both = ("--init-from", "nyu_seg2d_w64", "--init-shared", "nyu_seg2d_w64")
    assert "--init-from, --init-shared: " in refuse(data, *output, *both)
    assert "--init-shared absent.safetensors: " in refuse(data, "--init-shared", "absent.safetensors")
    assert "model.width: " in refuse("--resume", str(finished), "model.width=16")
    # Fine-tuning names the keys that the weights need.
    given = [data, *TINY, "--out", str(tmp_path / "wide")]
    message = refuse("--init-from", str(finished / "best.safetensors"), *given, "model.width=16")
    assert "model.width=8\n" in message and str(finished / "best.safetensors") in message
    message = refuse("--init-from", "nyu_seg2d_w64", *given)
    assert "nyu_seg2d_w64" in message and "model.width=64 model.stem_widths=[3,64]" in message


def test_failures_within_training_say_how_to_go_on(
    finished: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def fail(error: BaseException) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            raise error

        return step

    longer = ["--resume", str(folder), "training.epochs=2"]
    for error, code, named in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), 1, "training.recompute=elementwise"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, str(folder)),
    ):
        monkeypatch.setattr(AdversarialGame, "step", fail(error))
        assert train(longer) == code
        message = capsys.readouterr().err
        assert named in message and message.endswith(f"ammnet train --resume {folder}\n")
    monkeypatch.setattr(AdversarialGame, "step", fail(KeyboardInterrupt()))
    assert train(["--output", str(tmp_path / "new"), f"data.root={root}", *TINY]) == 130
    assert "--resume" not in capsys.readouterr().err


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


def test_a_terminated_training_saves_and_is_resumed(root: Path, tmp_path: Path) -> None:
    """Sent to the group, the signal ends the processes that load frames at once."""
    folder = tmp_path / "run"
    keys = ["training.epochs=500", "data.workers=2", "training.validate_every=500"]
    process = start(folder, f"data.root={root}", *TINY, *keys)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.endswith(f"ammnet train --resume {folder}\n") and "Traceback" not in errors
    steps = sum(json.loads(line)["kind"] == "step" for line in (folder / "metrics.jsonl").read_text().splitlines())
    epochs = steps // 2 + 1
    assert train(["--resume", str(folder), f"training.epochs={epochs}", "data.workers=0"]) == 0
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "step"] == list(range(1, 2 * epochs + 1))


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
    assert "data.workers=0" in errors and "Traceback" not in errors
    assert errors.endswith(f"ammnet train --resume {folder}\n")


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.9])
def test_a_cut_configuration_is_taken_from_the_state(finished: Path, tmp_path: Path, share: float | None) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    if share is None:
        (folder / "config.yaml").unlink()
    else:
        content = (folder / "config.yaml").read_bytes()
        (folder / "config.yaml").write_bytes(content[: int(share * len(content))])
    options = command._parse(["--resume", str(folder), "training.epochs=2"])
    with pytest.warns(UserWarning, match=r"config\.yaml"):
        assert command._resumed_config(options) == load_config(finished / "config.yaml", ["training.epochs=2"])
