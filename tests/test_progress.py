"""How far long work is, in a terminal and elsewhere."""

from types import SimpleNamespace

import pytest

from ammnet_sparse import progress
from ammnet_sparse.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(ProgressBar, "_said", now[0])
    return now


def work(clock: list[float]) -> None:
    """Two short stages and a long one."""
    for count in (2, 2, 20):
        for _ in ProgressBar(range(count), title="working", unit="frame"):
            clock[0] += 10
            ProgressBar.write("a frame is done")


def test_without_a_terminal_a_line_is_printed_every_half_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    work(clock)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert "\r" not in printed.err + printed.out and len(lines) == 8
    assert lines[-1].startswith("working: 95% 19/20 [03:20<")
    for _ in ProgressBar(range(9), title="working", unit="frame", is_shown=False):
        clock[0] += 60
    assert not capsys.readouterr().err
