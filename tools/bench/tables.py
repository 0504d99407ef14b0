"""The tables that tools/bench_model.py prints."""

from collections.abc import Sequence
from typing import Any

from bench.memory import CARDS_GB, MemoryLine
from bench.steps import PARTS


def print_header() -> None:
    print(
        f"\n{'':7}{'variant':22}{'type':9}{'GMAC':>8}{'saved MiB':>11}{'peak MiB':>10}{'s/step':>9}{'spread':>8}"
        + "".join(f"{part:>15}" for part in PARTS)
    )


def print_row(row: dict[str, Any]) -> None:
    def cell(value: float | None, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"

    text = f"{row['net']:7}{row['variant']:22}{row['dtype']:9}{cell(row['forward_gmac_per_sample'], 8, 1)}"
    text += cell(row["saved_mib_per_sample"], 11, 1) + cell(row["peak_mib"], 10, 0) + cell(row["step_seconds"], 9, 3)
    if row["step_seconds"] is not None:
        low, high = row["step_seconds_range"]
        text += f"{(high - low) / row['step_seconds']:8.0%}"
        text += "".join(f"{row['part_seconds'][part]:15.3f}" for part in PARTS)
    print(text, flush=True)


def print_predictions(rows: Sequence[dict[str, Any]]) -> None:
    shown = [row for row in rows if "predict_seconds" in row]
    if not shown:
        return
    print(f"\n{'completing one frame':38}{'seconds':>12}{'peak MiB beside weights':>26}")
    for row in shown:
        peak = "-" if row["predict_peak_mib"] is None else f"{row['predict_peak_mib']:.0f}"
        print(f"  {row['net']:7}{row['dtype']:29}{row['predict_seconds']:12.3f}{peak:>26}")


def print_groups(rows: Sequence[dict[str, Any]]) -> None:
    firsts = [next((row for row in rows if row["net"] == net), None) for net in ("sparse", "dense")]
    tables = (
        ("GMAC forward a sample, by layer group", "gmac_by_group", firsts, 2),
        ("positions computed, a sample", "sites_per_sample", firsts, 0),
        ("saved MiB per sample, by grid", "saved_by_resolution_mib", rows, 1),
        ("saved MiB per sample, by layer group", "saved_by_group_mib", rows, 1),
    )
    for title, key, columns, digits in tables:
        shown = [row for row in columns if row and key in row]
        if not shown:
            continue
        whole = columns is firsts
        print(f"\n{title:42}" + "".join(f"{_column(row, whole):>16}" for row in shown))
        for name in dict.fromkeys(name for row in shown for name in row[key]):
            if max(row[key].get(name, 0) for row in shown) < 0.5 * 0.1**digits:
                continue
            print(f"  {name:40}" + "".join(f"{row[key].get(name, 0):16.{digits}f}" for row in shown))
    saved = [row for row in rows if "saved_indices_mib" in row]
    apart = {
        "index pairs": "saved_indices_mib",
        "copies of weights": "saved_copies_of_weights_mib",
        "a forward pass of the discriminator": "saved_in_discriminator_mib",
    }
    if saved:
        print("  apart from these")
        for name, key in apart.items():
            print(f"    {name:38}" + "".join(f"{row[key]:16.1f}" for row in saved))


def _column(row: dict[str, Any], is_whole_net: bool) -> str:
    short = (
        row["variant"].replace("recompute_", "r. ").replace("elementwise", "elem.").replace("channels_last", "ch. last")
    )
    half = " 16" if row["dtype"] == "float16" else ""
    return row["net"] if is_whole_net else f"{row['net'][0]}. {short}{half}"


def print_largest_batches(rows: Sequence[dict[str, Any]], lines: Sequence[MemoryLine], basis: str) -> None:
    print(f"\n{'largest batch on a card of':38}" + "".join(f"{card:>6} GB" for card in CARDS_GB))
    for row, line in zip(rows, lines, strict=True):
        fitting = "".join(f"{line.largest_batch(card):9}" for card in CARDS_GB)
        print(f"{row['net']:7}{row['variant']:22}{row['dtype']:9}{fitting}")
    print(basis)
