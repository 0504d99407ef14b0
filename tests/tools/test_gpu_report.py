"""tools/gpu_report.py, rehearsed without a GPU."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gpu_report
import pytest
from bench import model

REPOSITORY = Path(__file__).resolve().parents[2]


def results_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, (out / "results.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["case"]: row for row in rows}


def test_every_case_has_its_line_and_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"rows": [{"step_seconds": 0.5, "net": "sparse"}]}
    programs = {
        "step fine": f"import json, sys; json.dump({rows}, open(sys.argv[1], 'w'))",
        "step wrong": "raise SystemExit('no kernel image')",
        "step endless": "import time; print('begun', flush=True); time.sleep(60)",
    }
    cases = [gpu_report.Case(name, 2, ["-c", program, "{json}"]) for name, program in programs.items()]
    monkeypatch.setattr(
        gpu_report, "cases", lambda options: iter([*cases, gpu_report.Case("tests", 2, ["-c", "raise ValueError"])])
    )
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--out", str(tmp_path), "--only", "step"])
    assert gpu_report.main() == 1
    found = results_of(tmp_path)
    assert found["step fine"]["result"] == "passed" and found["step fine"]["step_seconds"] == 0.5
    assert "1" in found["step wrong"]["result"] and found["step wrong"]["last_line"] == "no kernel image"
    assert "out of time" in found["step endless"]["result"] and found["step endless"]["last_line"] == "begun"
    assert found.keys() == programs.keys() and (tmp_path / "step_wrong.log").is_file()


def test_every_case_names_tools_and_options_that_exist() -> None:
    options = argparse.Namespace(device="cuda", data=Path("set"), quick=False)
    cases = list(gpu_report.cases(options))
    assert [case.name for case in cases[:3]] == ["environment", "step dense 256 fp16", "step sparse 256 fp16 gather"]
    for case in cases:
        if case.command[0] == "tools/bench_model.py":
            parsed = model._parse(case.command[1:])
            assert (parsed.steps == 15 and parsed.batch == 4) if case.name.startswith("step") else parsed.card_gb == 6
        assert not case.command[0].startswith("tools/") or (REPOSITORY / case.command[0]).is_file()
