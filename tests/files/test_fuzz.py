"""Damaged files of every kind: the readers accept them or raise the project's own error. ``make fuzz`` reads more."""

from pathlib import Path

from tests.fuzz import run


def test_damaged_files_raise_the_projects_own_errors_only(tmp_path: Path) -> None:
    findings = run(460, seed=8332, folder=tmp_path)
    assert findings.faults == []
    assert findings.refused.total() > 200 and findings.accepted.total() > 10
