#!/usr/bin/env python3
"""Writes docs/results.md, and the tables of figures in README.md and docs/models.md, from docs/results.json.

    python tools/docs/results.py            writes what has changed
    python tools/docs/results.py --check    writes nothing; exit code 1 if a page is not what the file says

In a page a table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``. Everywhere else in the documentation,
apart from the notebook, a pair of scores such as 75.0 / 55.0 must be one of docs/results.json, so that no figure stands
in two versions.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SCORES = ("SC IoU", "SSC mIoU")
_HIDDEN = "id"
_OTHER_PAIRS = "kernels.md"
"""A page whose pairs are bytes and microseconds."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a page is outdated")
    options = parser.parse_args(arguments)
    results = json.loads((REPOSITORY / "docs" / "results.json").read_text(encoding="utf-8"))
    outdated = {path: text for path, text in pages(results).items() if path.read_text(encoding="utf-8") != text}
    for path, text in outdated.items():
        print(
            f"{path.relative_to(REPOSITORY)}: {'outdated; run tools/docs/results.py' if options.check else 'written'}"
        )
        if not options.check:
            path.write_text(text, encoding="utf-8")
    unknown = unknown_scores(results)
    for place in unknown:
        print(f"{place}: expected scores of docs/results.json")
    return 1 if unknown or (outdated and options.check) else 0


def pages(results: dict[str, Any]) -> dict[Path, str]:
    """The text of every page that holds tables of results, by its path."""
    texts = {REPOSITORY / "docs" / "results.md": _results_page(results)}
    values: dict[str, Any] = {row["id"]: row for row in _rows(results) if _HIDDEN in row}
    weights = (REPOSITORY / "ammnet_sparse" / "weights").glob("*.safetensors")
    values["MB"] = {path.stem: f"{path.stat().st_size / 1e6:.1f}" for path in weights}
    for block in results["blocks"]:
        path = REPOSITORY / block["file"]
        text = texts.get(path) or path.read_text(encoding="utf-8")
        if "table" in block:
            lines = _table(results["tables"][block["table"]]["rows"])
        else:
            lines = [line.format_map(values) for line in block["lines"]]
        start, end = f"<!-- results: {block['name']} -->\n\n", "\n\n<!-- end -->"
        before, marker, rest = text.partition(start)
        if not marker or end not in rest:
            raise SystemExit(f"{path}: expected {start.strip()} and {end.strip()}, found no such block")
        texts[path] = before + start + "\n".join(lines) + rest[rest.index(end) :]
    return texts


def unknown_scores(results: dict[str, Any]) -> list[str]:
    """Places in the documentation whose pair of scores is not in the results."""
    known = {tuple(row[name] for name in SCORES) for row in _rows(results) if SCORES[0] in row}
    found = []
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        if path.name == _OTHER_PAIRS:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            pairs = re.findall(r"\b(\d\d\.\d) / (\d\d\.\d)\b", line)
            found += [f"{path.name}:{number}: {' / '.join(pair)}" for pair in pairs if pair not in known]
    return found


def _rows(results: dict[str, Any]) -> list[dict[str, str]]:
    return [row for table in results["tables"].values() for row in table["rows"]]


def _results_page(results: dict[str, Any]) -> str:
    lines = ["# Results", "", *results["notes"]]
    for table in results["tables"].values():
        if "title" in table:
            lines += [
                "",
                f"## {table['title']}",
                "",
                *"\n\n".join(table["notes"]).split("\n"),
                "",
                *_table(table["rows"]),
            ]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, str]]) -> list[str]:
    columns = [name for name in rows[0] if name != _HIDDEN]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return lines + ["|".join(["", *(f" {row[name]} " if row[name] else " " for name in columns), ""]) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
