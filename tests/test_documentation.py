"""The documentation's figures stand in one version."""

import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def results() -> dict:
    return runpy.run_path(str(REPOSITORY / "tools" / "docs" / "results.py"))


def test_pages_show_the_recorded_results(results: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert results["main"](["--check"]) == 0, capsys.readouterr().out


def test_figures_in_another_version_are_found(results: dict) -> None:
    row = {"SC IoU": "75.0", "SSC mIoU": "55.0"}
    found = results["unknown_scores"]({"tables": {"accuracy": {"rows": [row]}}})
    assert found and not any("75.0 / 55.0" in place for place in found)
    assert any(place.startswith("README.md:") and place.endswith(": 75.5 / 55.4") for place in found)
