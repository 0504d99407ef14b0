"""`ammnet environment`: what is missing is named."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from ammnet_sparse.cli import environment


def test_environment_names_missing_packages(capsys: pytest.CaptureFixture[str]) -> None:
    required = environment.required_packages()
    assert {"torch", "torchvision", "spconv", "timm", "pyyaml"} <= set(required) and len(required) > 12
    assert environment.missing_modules(required) == []
    assert environment.missing_modules(["torch", "no_such_package"]) == ["no_such_package"]
    code = environment.main(["--device", "cuda"])
    has_device = torch.cuda.is_available()
    assert ("LACKING: a CUDA device" in capsys.readouterr().out) is not has_device
    assert (code == 0) is has_device


def test_kernels_of_other_sources_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = runpy.run_path(str(environment._SOURCES.parent / "tools" / "setup" / "build_kernels.py"))
    monkeypatch.setattr(environment, "_BUILD", tmp_path / "build.json")
    for digest, is_named in ((build["digest_of"](environment._SOURCES), False), ("0" * 64, True)):
        (tmp_path / "build.json").write_text(json.dumps({"sources": digest}))
        environment.main([])
        assert ("LACKING: kernels for cpu" in capsys.readouterr().out) is is_named


def test_an_spconv_that_cannot_be_imported_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its wheels are often carried by hand, without their own requirements."""
    monkeypatch.setitem(sys.modules, "spconv.pytorch.functional", None)
    assert environment.main([]) == 1
    assert "LACKING: an spconv" in capsys.readouterr().out


def test_where_spconv_has_no_wheels_it_is_not_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setitem(sys.modules, "spconv", None)
    assert "spconv" not in environment.required_packages()
    assert list(environment._lacking_of_spconv("cpu")) == [] and "gather" in capsys.readouterr().out
