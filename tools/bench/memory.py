"""From measured memory to "does it fit my card?": the largest batch, the keys to set, and a plot."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    keys = [f"model.width={width}", "model.image_encoder=" + ("seg2d" if row["input"] == "seg2d" else "segformer_b2")]
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


def plot(rows: Sequence[dict[str, Any]], lines: Sequence[MemoryLine], path: Path, *, basis: str) -> None:
    """Memory and seconds per step against the batch; measured points, and the line through or from them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.5), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    most = max(2, min(max(line.largest_batch(CARDS_GB[-1]) for line in lines), 32))
    for index, (row, line) in enumerate(zip(rows, lines, strict=True)):
        style = {"color": f"C{index % 10}", "linestyle": "-" if row["net"] == "sparse" else "--"}
        fitting = "/".join(str(line.largest_batch(card)) for card in CARDS_GB)
        label = f"{row['net']} {row['variant']} {row['dtype']}: {fitting}"
        memory.plot([0, most], [line.at(size) / 1024 for size in (0, most)], label=label, **style)
        sizes = [point["batch"] for point in row["batches"]]
        memory.plot(sizes, [point["peak_mib"] / 1024 for point in row["batches"]], "o", color=style["color"])
        seconds.plot(sizes, [point["step_seconds"] for point in row["batches"]], marker="o", label=label, **style)
    for card in CARDS_GB:
        limit = card - RESERVED_MIB / 1024
        memory.axhline(limit, color="0.7", linewidth=0.8)
        memory.annotate(f"{card} GB card", (most, limit), ha="right", va="bottom", color="0.4")
    memory.set(xlabel="batch", ylabel="peak memory of a step, GiB", xlim=(0, most), ylim=(0, CARDS_GB[-1] + 1))
    seconds.set(xlabel="batch", ylabel="seconds per step", xlim=(0, None), ylim=(0, None))
    memory.legend(title=f"largest batch that fits {'/'.join(map(str, CARDS_GB))} GB", fontsize="small")
    figure.suptitle(basis, fontsize="small", wrap=True)
    figure.savefig(path, dpi=120)
