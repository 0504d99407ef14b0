"""`ammnet` itself: its commands, what it says of a typo, how it starts, and what Ctrl-C does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ammnet_sparse.cli import main as entry
from ammnet_sparse.cli import options
from ammnet_sparse.cli.configs import config_names, find_config
from ammnet_sparse.config import ConfigError, load_config

REPOSITORY = Path(__file__).resolve().parents[2]


def environment(path: Path | str = REPOSITORY, **variables: str) -> dict[str, str]:
    """The variables of a process that imports the package from ``path``."""
    return {**os.environ, "PYTHONPATH": str(path), **variables}


def python(*arguments: str, folder: Path, variables: dict[str, str]) -> str:
    """What a program prints, in a folder that is not the checkout."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True).stdout


def test_closed_standard_streams_change_nothing(tmp_path: Path) -> None:
    """Services and daemons start programs so."""
    options = "rooms --frames 2 --validation-frames 1 <&- >&- 2>&-"
    command = f'exec "{sys.executable}" -m ammnet_sparse data rooms {options}'
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(), check=False).returncode == 0
    assert (tmp_path / "rooms" / "train.txt").is_file()


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {name} " in overview for name in entry.COMMANDS)
    assert entry.main([]) == 2
    assert capsys.readouterr().out == overview
    assert entry.main(["data", "--help"]) == 0
    assert "data rooms" in (group := capsys.readouterr().out) and "predict" not in group
    assert entry.main(["data"]) == 2


@pytest.mark.parametrize("name", list(entry.COMMANDS))
def test_help_names_the_command_as_it_is_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry.run(name, ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: ammnet {name} ")
    assert "tools/" not in text and ".py" not in text
    assert "Exit code: 0" in text
    if not name.startswith("data ") and name not in ("convert", "report", "environment"):
        assert options.DEVICE_HELP in " ".join(text.split())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["trian"], "train"),
        (["evalute", "--data", "x"], "evaluate"),
        (["data", "chekc"], "data check"),
        (["rooms", "--out", "x"], "data rooms"),
        (["zzz"], None),
    ],
)
def test_a_typo_gets_the_nearest_command(
    typed: list[str], meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(typed) == 2
    message = capsys.readouterr().err
    assert message.startswith("ammnet: expected a command, found ")
    assert (f"did you mean `ammnet {meant}`?" if meant else "`ammnet --help` lists the commands") in message


def test_light_commands_do_not_import_the_network(tmp_path: Path) -> None:
    """`ammnet --help` and the commands on sets start without PyTorch."""
    program = (
        "import sys; from ammnet_sparse.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    for arguments, expected in ((["--help"], "0 False False"), (["data", "check", "absent"], "2 False True")):
        printed = python("-c", program, *arguments, folder=tmp_path, variables=environment())
        assert printed.splitlines()[-1] == expected


def test_interruption_while_starting(tmp_path: Path) -> None:
    """A stand-in for PyTorch's import, which takes seconds, reports that it has begun."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n", "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "ammnet_sparse", "predict", "--help"],
        env=environment(f"{tmp_path}{os.pathsep}{REPOSITORY}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "ammnet predict: interrupted\n")


def test_interruption_of_worker_processes(tmp_path: Path) -> None:
    """As a terminal does it: every process of the group gets the signal, and one of them answers."""
    rooms = tmp_path / "rooms"
    process = subprocess.Popen(
        [sys.executable, "-m", "ammnet_sparse", "data", "rooms", str(rooms), "--frames", "200", "--workers", "2"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(tmp_path.rglob("Label/*.npz")):  # rooms get their name when they are complete
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (130, "", "ammnet data rooms: interrupted\n")
    assert 0 < len(list(tmp_path.rglob("Label/*.npz"))) < 200 and not rooms.exists()


def test_an_output_that_is_full_is_named(tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ammnet_sparse", "data", "rooms", str(tmp_path / "r"), "--frames", "2"]
            + ["--validation-frames", "1", "--workers", "1"],
            env=environment(PYTHONUNBUFFERED=""),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "ammnet data rooms: standard output: No space left on device; free some space" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m ammnet_sparse data check --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: ammnet data check") and "Traceback" not in done.stderr


def test_configurations_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"default", "nyu_seg2d", "nyu_segformer", "nyucad"} <= set(config_names())
    expected = load_config(REPOSITORY / "configs" / "nyu_seg2d.yaml")
    for name in ("nyu_seg2d", "nyu_seg2d.yaml", "configs/nyu_seg2d.yaml", REPOSITORY / "configs" / "nyu_seg2d.yaml"):
        assert load_config(find_config(name)) == expected
    Path("nyu_seg2d").write_text("model: {width: 8}", encoding="utf-8")  # a file of that name comes first
    assert load_config(find_config("nyu_seg2d")).model.width == 8
    with pytest.raises(ConfigError, match="nyu_seg"):
        find_config("nyu_seg")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        find_config(tmp_path)
