"""What errors become: messages, exit codes, and places that cannot be written."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ammnet_sparse.cli import errors
from ammnet_sparse.cli.errors import CommandFailed, UsageError, command, writing_to
from ammnet_sparse.cli.main import main
from ammnet_sparse.config import ConfigError
from ammnet_sparse.data.parallel import WorkerLostError
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.training.interruption import RunInterrupted


def outcome(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message of a command that raises ``error``."""

    @command("example")
    def main(arguments: Sequence[str] | None = None) -> int:
        raise error

    code = main([])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ammnet example: ")
    return code, printed.err.removeprefix("ammnet example: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("--out: no"), 2, "--out: no"),
        (ConfigError("a.yaml: no"), 2, "a.yaml: no"),
        (WeightsError("w: no"), 2, "w: no"),
        (
            ConfigError("give `camera_height=1.2`, `pose_up='-z'` or `may_change=True` (`ammnet train`)"),
            2,
            "give --camera-height 1.2, --pose-up=-z or --change (`ammnet train`)",
        ),
        (CommandFailed("too large"), 1, "too large"),
        (WorkerLostError("a worker is gone"), 1, "a worker is gone"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RunInterrupted("stopped in epoch 2"), 130, "stopped in epoch 2"),
        (MemoryError("Unable to allocate 3 GiB"), 1, "out of memory: Unable to allocate 3 GiB"),
        (MemoryError(), 1, "out of memory: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), 1, "out of memory: CUDA out of memory."),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            "out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt"), 2, "x.txt: No such file or directory"),
        (
            OSError(errno.EROFS, "Read-only file system", b"\xff"),
            2,
            "\\udcff: Read-only file system; choose another place",
        ),
        (OSError("a message of our own"), 2, "a message of our own"),
    ],
)
def test_errors_become_messages_and_exit_codes(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(error, capsys) == (code, message)


def test_notes_follow_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    error = CommandFailed("the loss is not finite")
    error.add_note("continue with: ammnet train --resume x")
    assert outcome(error, capsys) == (1, "the loss is not finite\ncontinue with: ammnet train --resume x")


@pytest.mark.parametrize("error", [KeyError("epoch"), RuntimeError("shapes do not match"), SystemExit(2)])
def test_faults_of_the_program_keep_their_traceback(error: BaseException) -> None:
    @command("example")
    def main(arguments: Sequence[str] | None = None) -> int:
        raise error

    with pytest.raises(type(error)):
        main([])


def test_a_file_without_a_name_gets_one(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space left on device") as caught,
        writing_to(tmp_path / "out"),
        open("/dev/full", "w", encoding="utf-8") as full,
    ):
        full.write("x")
    assert caught.value.filename == str(tmp_path / "out")
    with pytest.raises(FileNotFoundError) as named, writing_to(tmp_path / "out"):
        (tmp_path / "absent").read_text()
    assert named.value.filename == str(tmp_path / "absent")


def test_libraries_that_do_not_raise_oserror_are_told_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model.pth"), writing_to(tmp_path / "model.pth"):
        torch.save({"x": torch.zeros(100_000)}, "/dev/full")
    with pytest.raises(UsageError, match="w.safetensors"), writing_to(tmp_path / "w.safetensors"):
        safetensors.torch.save_file({"x": torch.zeros(10)}, tmp_path / "absent" / "w.safetensors")


@pytest.mark.parametrize(
    "given",
    [
        ["predict", "--depth", "frames", "--intrinsics", "1,1,1,1", "--out", "LOOP"],
        ["predict", "--depth", "LOOP", "--intrinsics", "1,1,1,1", "--out", "out"],
        ["live", "--source", "frames", "--intrinsics", "1,1,1,1", "--depth-only", "--no-viewer", "--out", "LOOP"],
        ["train", "data.root=LOOP"],
        ["train", "--resume", "LOOP"],
        ["report", "LOOP"],
        ["data", "rooms", "LOOP"],
        ["data", "pack", "--data", "LOOP", "--out", "packed"],
        ["evaluate", "--data", "LOOP"],
    ],
)
def test_a_link_that_leads_to_itself_is_a_wrong_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("frames").mkdir()
    Path("loop").symlink_to("loop")
    for place in ("loop", "loop/below"):
        assert main([text.replace("LOOP", place) for text in given]) == 2
        assert "loop" in capsys.readouterr().err
    assert not Path("loop.partial").exists()


def test_places_that_cannot_be_written_are_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    errors.check_output_file(file)
    errors.check_output_file(tmp_path / "new")
    errors.check_output_folder(tmp_path / "a" / "b")
    with pytest.raises(UsageError, match="--json"):
        errors.check_output_file(tmp_path, option="--json")
    with pytest.raises(UsageError, match="--out"):
        errors.check_output_file(tmp_path / "absent" / "x")
    with pytest.raises(UsageError, match=f"--out .*{file}"):
        errors.check_output_folder(file / "below")
    # Root may write everywhere: the system's answer stands in for a read-only place.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=f"--out {file}"):
        errors.check_output_file(file)
    with pytest.raises(UsageError, match=f"--out .*{tmp_path}"):
        errors.check_output_folder(tmp_path / "a")
