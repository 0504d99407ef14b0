"""Options that commands share."""

import argparse

import pytest
import torch

from ammnet_sparse.cli import options
from ammnet_sparse.cli.errors import UsageError


def message_of(parser: options.CommandParser, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_mistakes_have_the_prefix_of_the_command_and_the_nearest_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.CommandParser("example", "Does something.\n\nMore of it.")
    options.add_checkpoint_option(parser, default="w")
    options.add_limit_option(parser, "frames")
    last = message_of(parser, ["--chekpoint", "x"], capsys).splitlines()[-1]
    assert last.startswith("ammnet example: ") and last.endswith("--checkpoint?")
    assert not message_of(parser, ["--zzz"], capsys).endswith("?\n")
    assert "--limit: " in message_of(parser, ["--limit", "0"], capsys)
    assert "--lim " in message_of(parser, ["--lim", "3"], capsys)  # no abbreviations


def test_lists_of_frames_have_two_spellings() -> None:
    parser = options.CommandParser("example", None)
    parser.add_argument("root", nargs="?")
    options.add_splits_option(parser, "lists")
    assert parser.parse([]).splits == []
    assert parser.parse(["x", "--splits", "train", "test"]).splits == ["train", "test"]
    found = parser.parse(["--split", "train", "--split", "val", "x"])
    assert (found.splits, found.root) == (["train", "val"], "x")
    assert parser.parse([]).splits == []  # the default is not the list of an earlier call


def test_one_value_of_two_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.CommandParser("example", None)
    assert options.either(parser, "--out", (None, "x")) == "x"
    for given in ((None, None), ("a", "b")):
        with pytest.raises(SystemExit):
            options.either(parser, "--out", given)
        assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "²", "one"])
def test_positive_numbers(text: str) -> None:
    assert options.parse_positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError):
        options.parse_positive(text)


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two CUDA devices; collects those that become the current one."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def test_one_of_several_devices_becomes_the_current_one(made_current: list[torch.device]) -> None:
    assert options.choose_device(None) == torch.device("cuda") and made_current == []
    assert options.choose_device("cuda:1") == torch.device("cuda:1")
    assert made_current == [torch.device("cuda:1")]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_device_without_a_number_stays_as_it_is(name: str, made_current: list[torch.device]) -> None:
    assert options.parse_device(name) == torch.device(name) and made_current == []


@pytest.mark.parametrize("name", ["cuda:2", "tpu", "meta", "abacus", ""])
def test_a_device_that_is_not_there_is_an_error(name: str, made_current: list[torch.device]) -> None:
    with pytest.raises(UsageError, match="--device"):
        options.parse_device(name)
    assert made_current == []
