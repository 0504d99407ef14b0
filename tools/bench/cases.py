"""What tools/bench_kernels.py measures: every operator, the same in plain PyTorch, and the bytes that must move.

The plain PyTorch is that of the dense original: features are brought to the size of the image and indexed, empty
channels are filled on the whole grid, samples and classes are looped over in Python, labels become one-hot volumes.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from bench.timing import Step
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import GRID_SHAPE, IGNORE_LABEL, IMAGE_SHAPE, NUM_CLASSES
from ammnet_sparse.data.sets.source import open_frames
from ammnet_sparse.data.synthetic.generate import generate_rooms
from ammnet_sparse.evaluation.selection import split_ids
from ammnet_sparse.ops import (
    draw_shuffle,
    erase_voxels,
    fill_empty,
    modulate,
    normalize_sites,
    one_hot_sites,
    project_features,
    projection,
    shuffle_categories,
)
from ammnet_sparse.sparse.kernel_maps import neighbor_rows
from ammnet_sparse.sparse.sites import SiteSet, sites_from_mask

BATCH_SIZE = 4
CHANNELS = 256
MAP_SIZE = (IMAGE_SHAPE[0] // 4, IMAGE_SHAPE[1] // 4)
ROWS_OF_FRAME = 2900
MANY_ROWS = 65536
EMPTY_SHARE = 0.2
"""Share of zeros after a ReLU in the channels of a hit voxel, 7 to 33 % in trained networks."""
FRAMES_SIZE = f"{BATCH_SIZE}x{ROWS_OF_FRAME}"
MANY_SIZE = str(MANY_ROWS)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement: what is compared, and the bytes that must move."""

    op: str
    direction: str
    size: str
    dtype: torch.dtype
    bytes: int
    ours: Step
    naive: Step


def load_frames(
    folder: Path | None,
    *,
    split: Literal["train", "val"] = "train",
    count: int = BATCH_SIZE,
    read_label_map: bool = False,
    grid_shape: tuple[int, int, int] = GRID_SHAPE,
) -> list[Batch]:
    """Frames of a set on disk, or of at most 4 generated rooms, each a batch of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            count = min(count, BATCH_SIZE)
            folder = Path(temporary) / "rooms"
            frames = {"train": count, "val": 1} | {split: count}
            generate_rooms(
                folder, frames=sum(frames.values()), validation_frames=frames["val"], seed=8332, noise="kinect",
                workers=1, progress=False,
            )  # fmt: skip
        source = open_frames(folder, read_image=False, read_label_map=read_label_map, grid_shape=grid_shape)
        return [Batch.from_frame(source.read(frame_id)) for frame_id in split_ids(source, split, limit=count)]


def load_batch(folder: Path | None) -> Batch:
    """Four training frames of a set on disk, or of generated rooms. Raises ValueError if there are fewer."""
    frames = load_frames(folder)
    if len(frames) < BATCH_SIZE:
        raise ValueError(f"{folder}: expected {BATCH_SIZE} training frames, found {len(frames)}")
    return Batch.collate(frames)


def make_cases(batch: Batch, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """All cases of a device, one at a time, so that the memory of one is free for the next."""
    for rows_of_frame, size in ((ROWS_OF_FRAME, FRAMES_SIZE), (MANY_ROWS // BATCH_SIZE, MANY_SIZE)):
        yield from _projection_cases(batch, device, dtype, rows_of_frame=rows_of_frame, size=size)
        yield from _filling_cases(batch, device, dtype, is_large=size == MANY_SIZE)
        yield from _perturbation_cases(batch, device, size=size)
        yield from _one_hot_cases(batch, device, dtype, rows_of_frame=rows_of_frame, size=size)
        yield from _modulation_cases(device, dtype, num_rows=rows_of_frame * BATCH_SIZE, size=size)
        yield from _normalization_cases(device, dtype, num_rows=rows_of_frame * BATCH_SIZE, size=size)


def _gradient(result: Tensor, inputs: list[Tensor], grad: Tensor) -> Step:
    return lambda: torch.autograd.grad(result, inputs, grad, retain_graph=True)


def mapped_pixels(batch: Batch, rows_of_frame: int) -> tuple[Tensor, Tensor]:
    """[N] pixels in the order of the voxels and [N] samples; a frame with fewer gives pixels beside its own too."""
    pixels = []
    for mapping in batch.mapping:
        hit = mapping[mapping >= 0].long()
        times = -(-rows_of_frame // len(hit))
        beside = (hit[:, None] + 7 * torch.arange(times)).clamp_max(IMAGE_SHAPE[0] * IMAGE_SHAPE[1] - 1)
        pixels.append(beside.flatten()[:rows_of_frame])
    return torch.cat(pixels), torch.arange(batch.batch_size).repeat_interleave(rows_of_frame)


def _upsample_and_index(features: Tensor, pixel: Tensor, rows_of_frame: int) -> Tensor:
    image = F.interpolate(features, IMAGE_SHAPE, mode="bilinear", align_corners=False).flatten(2)
    rows = [image[sample][:, pixel[sample * rows_of_frame :][:rows_of_frame]].t() for sample in range(BATCH_SIZE)]
    return torch.cat(rows)


def _projection_cases(
    batch: Batch, device: torch.device, dtype: torch.dtype, *, rows_of_frame: int, size: str
) -> Iterator[Case]:
    pixel, sample = (indices.to(device) for indices in mapped_pixels(batch, rows_of_frame))
    shape = (BATCH_SIZE, CHANNELS, *MAP_SIZE)
    features = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    # The dense original's map lies channels-first.
    planes = features.contiguous().requires_grad_()
    shapes = (BATCH_SIZE, *MAP_SIZE), IMAGE_SHAPE
    reads = projection._reads(pixel, sample, *shapes, align_corners=False, dtype=torch.float32)
    row = CHANNELS * features.element_size()
    indices = pixel.numel() * (pixel.element_size() + sample.element_size())
    yield Case(
        "project_features", "forward", size, dtype, indices + (pixel.numel() + reads.cells.unique().numel()) * row,
        ours=lambda: project_features(features, pixel, sample, image_size=IMAGE_SHAPE),
        naive=lambda: _upsample_and_index(planes.detach(), pixel, rows_of_frame),
    )  # fmt: skip
    leaf = features.detach().requires_grad_()
    ours = project_features(leaf, pixel, sample, image_size=IMAGE_SHAPE)
    naive = _upsample_and_index(planes, pixel, rows_of_frame)
    grad = torch.randn_like(ours)
    yield Case(
        "project_features", "backward", size, dtype,
        indices + (pixel.numel() + BATCH_SIZE * MAP_SIZE[0] * MAP_SIZE[1]) * row,
        ours=_gradient(ours, [leaf], grad), naive=_gradient(naive, [planes], grad),
    )  # fmt: skip


def _dilated(mask: Tensor, width: int) -> Tensor:
    return F.max_pool3d(mask[:, None].float(), width, stride=1, padding=width // 2)[:, 0] > 0


def encoder_sites(batch: Batch, *, is_large: bool) -> tuple[SiteSet, Tensor]:
    """The hit voxels dilated by 3x3x3, or a larger dilation thinned to 64k sites; and which of them are hit."""
    hit = batch.hit_mask.view(batch.batch_size, *batch.grid_shape)
    mask = _dilated(hit, 3)
    width = 3
    while is_large and int(mask.sum()) < MANY_ROWS:
        width += 2
        mask = _dilated(hit, width)
    if is_large:
        order = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) + ~mask
        chosen = order.flatten().argsort()[:MANY_ROWS]
        mask = torch.zeros(mask.numel(), dtype=torch.bool).index_fill(0, chosen, True).view(mask.shape)
    sites = sites_from_mask(mask)
    return sites, hit.flatten()[sites.linear]


def projected_features(is_hit: Tensor, *, dtype: torch.dtype) -> Tensor:
    """[N, CHANNELS] as in the input of ``fill_empty``: after a ReLU where ``is_hit`` [N], zeros elsewhere."""
    shift = torch.special.ndtri(torch.tensor(1 - EMPTY_SHARE, dtype=torch.float64)).item()
    drawn = torch.randn((len(is_hit), CHANNELS), device=is_hit.device)
    return (F.relu(drawn + shift) * is_hit[:, None]).to(dtype)


def _fill_volume(volume: Tensor) -> Tensor:
    return volume + (volume == 0) * F.avg_pool3d(volume, 3, stride=1, padding=1)


def _filling_cases(batch: Batch, device: torch.device, dtype: torch.dtype, *, is_large: bool) -> Iterator[Case]:
    sites, is_hit = encoder_sites(batch, is_large=is_large)
    sites = SiteSet(sites.batch_size, sites.spatial_shape, sites.linear.to(device))
    neighbors = neighbor_rows(sites)
    features = projected_features(is_hit.to(device), dtype=dtype)
    volume = sites.densify(features).contiguous().requires_grad_()
    size = MANY_SIZE if is_large else f"{len(sites)} (sites of {BATCH_SIZE} frames)"
    once = features.numel() * features.element_size()
    indices = neighbors.numel() * neighbors.element_size()
    yield Case(
        "fill_empty", "forward", size, dtype, indices + 2 * once,
        ours=lambda: fill_empty(features, neighbors), naive=lambda: _fill_volume(volume.detach()),
    )  # fmt: skip
    leaf = features.detach().requires_grad_()
    ours, naive = fill_empty(leaf, neighbors), _fill_volume(volume)
    grad = torch.randn_like(ours)
    yield Case(
        "fill_empty", "backward", size, dtype, indices + 3 * once,
        ours=_gradient(ours, [leaf], grad), naive=_gradient(naive, [volume], sites.densify(grad).contiguous()),
    )  # fmt: skip


def _erase_with_masks(labels: Tensor, probability: Tensor) -> Tensor:
    erased = labels.clone()
    for sample, chance in zip(erased, probability, strict=True):
        for label in range(1, NUM_CLASSES):
            mask = sample == label
            sample[mask & (torch.rand(sample.shape, device=sample.device) < chance)] = 0
    return erased


def _shuffle_with_masks(labels: Tensor, class_map: Tensor, probability: Tensor) -> Tensor:
    shuffled = labels.clone()
    for sample, source, targets, chances in zip(shuffled, labels, class_map, probability, strict=True):
        for label in source.unique().tolist():
            if label not in (0, IGNORE_LABEL):
                mask = source == label
                mask &= torch.rand(source.shape, device=source.device) < chances[label]
                sample[mask] = targets[label].to(labels.dtype)
    return shuffled


def _perturbation_cases(batch: Batch, device: torch.device, *, size: str) -> Iterator[Case]:
    assert batch.label is not None
    labels = batch.label.where(batch.scored_mask, IGNORE_LABEL).to(torch.uint8)
    if size == MANY_SIZE:
        # As many labels, from the middle of the rooms.
        middle = labels.shape[1] // 2
        labels = labels[:, middle : middle + MANY_ROWS // BATCH_SIZE]
    labels = labels.contiguous().to(device)
    name = f"{BATCH_SIZE}x{labels.shape[1]} labels"
    probability = torch.full((BATCH_SIZE,), 0.5, device=device)
    class_map, chances = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(0.1, 0.9), seed=8332)
    yield Case(
        "erase_voxels", "forward", name, labels.dtype, 2 * labels.numel(),
        ours=lambda: erase_voxels(labels, probability, 8332),
        naive=lambda: _erase_with_masks(labels, probability),
    )  # fmt: skip
    yield Case(
        "shuffle_categories", "forward", name, labels.dtype, 2 * labels.numel(),
        ours=lambda: shuffle_categories(labels, class_map, chances, 8332),
        naive=lambda: _shuffle_with_masks(labels, class_map, chances),
    )  # fmt: skip


def _one_hot_volume(labels: Tensor, linear: Tensor, dtype: torch.dtype) -> Tensor:
    volume = F.one_hot(labels.long().clamp_max(NUM_CLASSES), NUM_CLASSES + 1)[..., :NUM_CLASSES].to(dtype)
    return volume.view(-1, NUM_CLASSES)[linear]


def _one_hot_cases(
    batch: Batch, device: torch.device, dtype: torch.dtype, *, rows_of_frame: int, size: str
) -> Iterator[Case]:
    assert batch.label is not None
    scored = batch.scored_mask.flatten().nonzero().squeeze(1)
    num_rows = rows_of_frame * BATCH_SIZE
    linear = scored.repeat(-(-num_rows // len(scored)))[:num_rows].to(device)
    labels = batch.label.to(torch.uint8).to(device)
    item = torch.empty((), dtype=dtype).element_size()
    yield Case(
        "one_hot_sites", "forward", size, dtype, num_rows * (8 + 1 + NUM_CLASSES * item),
        ours=lambda: one_hot_sites(labels, linear, NUM_CLASSES, dtype),
        naive=lambda: _one_hot_volume(labels, linear, dtype),
    )  # fmt: skip


def _modulation_cases(device: torch.device, dtype: torch.dtype, *, num_rows: int, size: str) -> Iterator[Case]:
    features, scale, bias = (
        torch.randn((num_rows, CHANNELS), device=device, dtype=dtype).requires_grad_() for _ in range(3)
    )

    def written_out() -> Tensor:
        return features * (1 + torch.sigmoid(scale)) + bias

    def without_gradient(step: Step) -> Step:
        return torch.no_grad()(step)

    values = tuple(tensor.detach() for tensor in (features, scale, bias))
    once = features.numel() * features.element_size()
    yield Case(
        "modulate", "forward", size, dtype, 4 * once,
        ours=lambda: modulate(*values), naive=without_gradient(written_out),
    )  # fmt: skip
    ours, naive = modulate(features, scale, bias), written_out()
    grad = torch.randn_like(values[0])
    inputs = [features, scale, bias]
    yield Case(
        "modulate", "backward", size, dtype, 5 * once,
        ours=_gradient(ours, inputs, grad), naive=_gradient(naive, inputs, grad),
    )  # fmt: skip


def _normalization_cases(device: torch.device, dtype: torch.dtype, *, num_rows: int, size: str) -> Iterator[Case]:
    """With one residual and a ReLU, as at the end of a block."""
    features, residual = (
        torch.randn((num_rows, CHANNELS), device=device, dtype=dtype).requires_grad_() for _ in range(2)
    )
    statistics = torch.promote_types(dtype, torch.float32)
    weight, bias = (torch.rand(CHANNELS, device=device, dtype=statistics).requires_grad_() for _ in range(2))
    inputs = [features, weight, bias, residual]

    def fused(features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        out = normalize_sites(features, weight, bias, residuals=(residual,), with_sum=False, with_relu=True)
        assert out.activated is not None
        return out.activated

    def written_out(features: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(F.batch_norm(features, None, None, weight, bias, training=True) + residual)

    values = tuple(tensor.detach() for tensor in inputs)
    once = features.numel() * features.element_size()
    yield Case(
        "normalize_sites", "forward", size, dtype, 3 * once,
        ours=lambda: fused(*values), naive=lambda: written_out(*values),
    )  # fmt: skip
    ours, naive = fused(*inputs), written_out(*inputs)
    grad = torch.randn_like(values[0])
    yield Case(
        "normalize_sites", "backward", size, dtype, 5 * once,
        ours=_gradient(ours, inputs, grad), naive=_gradient(naive, inputs, grad),
    )  # fmt: skip
