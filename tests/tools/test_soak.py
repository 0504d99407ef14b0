"""tools/soak.py: what it calls flat, and that it trains."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import soak

    yield soak
    sys.modules.pop("soak", None)


@pytest.mark.parametrize(
    ("slope", "jitter", "is_flat"),
    [(0.0, 0.0, True), (0.0, 60.0, True), (0.01, 0.0, True), (0.1, 0.0, False)],
)
def test_growth_is_told_from_what_the_allocator_does(soak: Any, slope: float, jitter: float, is_flat: bool) -> None:
    resident = [300.0 + step for step in range(200)]
    resident += [1000 + slope * step + (jitter if step % 7 == 0 else 0) for step in range(1800)]
    flatness = soak.Flatness.of(resident, settled=200)
    assert len(flatness.medians) == 18 and flatness.is_flat(0.02) == is_flat


def test_it_trains_and_says_so(soak: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "soak.json"
    arguments = ["--steps", "6", "--settled", "2", "--tolerance", "0.5", "--json", str(path)]
    assert soak.main(arguments) == 0
    assert "6 steps of 2 frames at width 8" in (printed := capsys.readouterr().out) and printed.endswith("flat\n")
    assert len(json.loads(path.read_text())["resident_mib"]) == 6
