"""The tables that tools/bench_model.py prints, and which batch fits a card."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from bench.steps import PARTS

RESERVED_MIB = 700
"""MiB of a card for CUDA itself: its context, the kernels' code, and fragmentation."""
CARDS_GB = (4, 8, 12, 24)


@dataclasses.dataclass(frozen=True)
class MemoryLine:
    """Peak memory of a step against its batch, in MiB, and how that is known."""

    fixed: float
    per_sample: float
    basis: str

    def at(self, batch_size: float) -> float:
        return self.fixed + self.per_sample * batch_size

    def largest_batch(self, card_gb: float) -> int:
        """The largest batch that fits a card of so many GB (of 1024 MiB); 0 for none."""
        return max(int((card_gb * 1024 - RESERVED_MIB - self.fixed) // self.per_sample), 0)


def memory_line(points: Sequence[tuple[int, float]], *, static_mib: float) -> MemoryLine:
    """From measured (batch, peak MiB).

    Two batches or more: a straight line through them. One: weights, gradients and optimizer do not grow with the
    batch, everything else does.
    """
    if len({batch for batch, _ in points}) > 1:
        batches, peaks = np.array(points, dtype=np.float64).T
        slope, fixed = np.polyfit(batches, peaks, 1)
        sizes = ", ".join(str(batch) for batch, _ in points)
        return MemoryLine(float(fixed), max(float(slope), 1.0), f"a straight line through the peaks of batches {sizes}")
    batch, peak = points[0]
    basis = (
        f"weights, gradients and AdamW's moments ({static_mib:.0f} MiB), and of the rest of the peak of batch {batch} "
        "(saved activations and working memory) as much for each sample"
    )
    return MemoryLine(static_mib, max(peak - static_mib, 1.0) / batch, basis)


def settings(row: dict[str, Any], *, width: int, wanted: int, largest: int) -> list[str]:
    """The configuration keys that train a row's variant with ``wanted`` frames per step if ``largest`` fit at once."""
    keys = [f"model.width={width}", "model.image_encoder=seg2d"]
    if row["dtype"] == "float16":
        keys.append("training.mixed_precision=true")
    if row["variant"].startswith("recompute_"):
        keys.append("training.recompute=" + row["variant"].removeprefix("recompute_"))
    batch = max(size for size in range(1, wanted + 1) if wanted % size == 0 and (size <= largest or size == 1))
    keys.append(f"training.batch_size={batch}")
    if batch < wanted:
        keys.append(f"training.accumulate={wanted // batch}")
    return keys


def card_answer(
    rows: Sequence[dict[str, Any]], lines: Sequence[MemoryLine], *, card_gb: float, width: int, wanted: int
) -> str:
    """Text: for each row whether ``wanted`` frames per step fit, the largest batch, and the keys to set."""
    text = [f"A card of {card_gb:g} GB, {wanted} frames per step (training.batch_size={wanted}):"]
    for row, line in zip(rows, lines, strict=True):
        largest = line.largest_batch(card_gb)
        label = f"  {row['net']:7}{row['variant']:22}{row['dtype']:9}"
        verdict = "yes" if largest >= wanted else "no"
        advice = f"{verdict:4}needs {(line.at(wanted) + RESERVED_MIB) / 1024:5.1f} GB, largest batch {largest:3}"
        if row["net"] == "sparse" and largest:
            advice += "   " + " ".join(settings(row, width=width, wanted=wanted, largest=largest))
        text.append(label + advice)
    text.append("  Accumulated batches equal one large batch but for batch normalization. The dense reference is not")
    text.append("  trainable from a configuration; it stands here for comparison.")
    return "\n".join(text)


def basis_text(rows: Sequence[dict[str, Any]], lines: Sequence[MemoryLine], *, is_cuda: bool) -> str:
    """How the largest batches were determined, in words."""
    source = (
        "CUDA's allocator" if is_cuda else "the resident set of a run on the CPU (a GPU's kernels need other buffers)"
    )
    bases = list(dict.fromkeys(line.basis for line in lines))
    known = bases[0] if len(bases) == 1 else f"as for {rows[0]['net']} {rows[0]['variant']}: {bases[0]}"
    return f"Known from {source}: {known}. Kept free on a card: {RESERVED_MIB} MiB for CUDA itself."


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


def print_operations(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each variant that was counted."""
    shown = [row for row in rows if "operations" in row]
    if not shown:
        return
    print(f"\n{'a training step dispatches':38}{'operations':>12}{'launches':>10}{'views':>8}{'waits':>8}")
    for row in shown:
        name = f"{row['net']:7}{row['variant']:22}{row['dtype']}"
        print(f"  {name:36}{row['operations']:12,}{row['counted_launches']:10,}{row['views']:8,}{row['host_waits']:8}")
