"""Several processes train together as one does; what stops one of them stops all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.cli import train
from ammnet_sparse.models.weights.files import read_weights
from ammnet_sparse.processes import any_process, from_first_process, joined_processes, num_processes, of_all_processes
from tests.training.support import TINY_KEYS, tiny_set

REPOSITORY = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TRAIN = ["-m", "ammnet_sparse", "train", "--device", "cpu"]
KEYS = [*TINY_KEYS, "data.workers=0", "training.validate_every=1", "training.ema_decay=0.9"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("set"), frames=7, validation=3)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], *, seconds: float = 120) -> tuple[int, str]:
    try:
        output = process.communicate(timeout=seconds)[0]
    finally:
        process.kill()
    return process.returncode, output


def entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def wait_for_steps(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(entries(folder)) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_steps_and_scores_of_two_processes_are_those_of_one() -> None:
    code, output = finish(start([*TORCHRUN, "-m", "tests.training.two_processes"]))
    assert code == 0, output
    assert output.count("a step agrees") == 8 and output.count("all agrees") == 2


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_bit_with_as_many_processes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*KEYS, f"data.root={root}", "training.epochs=8", "training.batch_size=1", "training.validate_every=8"]
    whole = start([*TORCHRUN, *TRAIN, "--out", str(tmp_path / "whole"), *keys])
    cut = start([*TORCHRUN, *TRAIN, "--out", str(tmp_path / "cut"), *keys])
    wait_for_steps(cut, tmp_path / "cut", 4)
    cut.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
    _, output = finish(cut)
    assert "stopped after" in output and (tmp_path / "cut" / "state.pt").is_file(), output
    assert train.main(["--device", "cpu", "--resume", str(tmp_path / "cut")]) == 2
    assert "--nproc_per_node" in capsys.readouterr().err
    code, output = finish(start([*TORCHRUN, *TRAIN, "--resume", str(tmp_path / "cut")]))
    assert code == 0, output
    code, output = finish(whole)
    assert code == 0, output
    first, second = (read_weights(tmp_path / name / "last.safetensors")[0] for name in ("whole", "cut"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    losses = [[entry["loss"] for entry in entries(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_a_process_that_is_killed_ends_all(root: Path, tmp_path: Path) -> None:
    keys = [*KEYS, f"data.root={root}", "training.epochs=500", "training.batch_size=1"]
    run = start([*TORCHRUN, *TRAIN, "--out", str(tmp_path / "run"), *keys])
    wait_for_steps(run, tmp_path / "run", 2)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    killed = time.monotonic()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, output = finish(run, seconds=60)
    assert code != 0 and time.monotonic() - killed < 60
    assert "another process of this training has ended" in output or "SIGKILL" in output or "Signal 9" in output, output


def test_cards_and_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(RuntimeError, match="device"), joined_processes("cuda:1"):
        pass
    with pytest.raises(RuntimeError, match="--nproc_per_node"), joined_processes("cuda"):
        pass


def test_one_process_communicates_with_none() -> None:
    with joined_processes("cpu") as device:
        assert device == "cpu" and num_processes() == 1
        assert any_process(True, device=torch.device("cpu")) and not any_process(False, device=torch.device("cpu"))
        assert from_first_process(3) == 3 and of_all_processes("x") == ["x"]
