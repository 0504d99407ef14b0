"""Adds a page for every module of the package to the site of the documentation (mkdocs.yml names this as a hook)."""

import ast
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ammnet_sparse"
FOLDER = "reference"


def modules() -> list[str]:
    """Dotted names of the modules to document: those that are public and define something, sorted."""
    names = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        is_private = any(part.startswith("_") for part in parts)
        if not is_private and _defines_something(path):
            names.append(".".join(parts))
    return names


def _defines_something(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign) for node in body)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the section "API reference", a group for every folder of the package, to the navigation."""
    groups: dict[str, list[dict[str, str]]] = {}
    for name in modules():
        _, _, inside = name.partition(".")
        folder = inside.rpartition(".")[0]
        groups.setdefault(folder, []).append({inside or PACKAGE: _page(name)})
    entries: list[Any] = list(groups.pop("", []))
    entries += [{folder: pages} for folder, pages in sorted(groups.items())]
    config.nav = [*(config.nav or []), {"API reference": entries}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, which mkdocstrings fills from the docstrings. The search ranks them below those of the manual."""
    for name in modules():
        header = f"---\ntitle: {name}\nsearch:\n  boost: 0.2\n---\n\n"
        files.append(File.generated(config, _page(name), content=f"{header}::: {name}\n"))
    return files


def _page(name: str) -> str:
    return f"{FOLDER}/{name}.md"
