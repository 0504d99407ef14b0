"""Augmentation of frames: mirrored, exchanged and shifted axes of the voxels, and changes of the color image.

All augmentation changes the data, not the model. Voxels are moved, never resampled, so each keeps its TSDF,
label, label weight and the pixel that hit it; if the image is resized, cropped or mirrored, that pixel follows. A
voxel whose pixel is cropped has no pixel any more but is still hit by the depth, which augmentation never changes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as image_functional

from ammnet_sparse.data.batch import IMAGE_MEAN, color_planes
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE, UNMAPPED
from ammnet_sparse.data.sets.ids import hash_of
from ammnet_sparse.data.symmetry import Shift, Symmetry, fill_of

_PROBABILITY = 0.5
_RESIZE = (0.8, 1.2)
_BRIGHTNESS = 32.0
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = 18 / 180


def augment(frame: Frame, *, generator: torch.Generator, use_3d: bool, use_2d: bool, largest_shift: int = 0) -> Frame:
    """A randomly changed copy of a frame.

    Args:
        generator: source of all random draws; their number does not depend on what is drawn.
        use_3d: moves the voxels by a symmetry (``draw_symmetry``).
        largest_shift: along X and along Y, in voxels (``draw_shift``); 0: none is drawn.
        use_2d: ``augment_2d``; has no effect on a frame without image.
    """
    if use_3d:
        frame = move_voxels(frame, draw_symmetry(generator))
    if largest_shift:
        frame = shift_voxels(frame, draw_shift(generator, largest=largest_shift))
    if use_2d and frame.image is not None:
        frame = augment_2d(frame, generator=generator)
    return frame


def augmentation_generator(*, seed: int, epoch: int, frame_id: str) -> torch.Generator:
    """The generator of a frame's augmentation; its draws depend only on the three arguments."""
    return torch.Generator().manual_seed(hash_of(f"{seed}:{epoch}:{frame_id}") % 2**63)


def draw_symmetry(generator: torch.Generator) -> Symmetry:
    """Flips X, flips Y and exchanges X and Y, each with probability 0.5. Takes three draws."""
    return Symmetry(*(chance < _PROBABILITY for chance in _draw(3, generator)))


def draw_shift(generator: torch.Generator, *, largest: int) -> Shift:
    """Whole voxels from -largest to largest along X and along Y, each equally likely. Takes two draws."""
    x, y = (int(fraction * (2 * largest + 1)) - largest for fraction in _draw(2, generator))
    return Shift(x, y)


def shift_voxels(frame: Frame, shift: Shift) -> Frame:
    """A frame with shifted voxels; the same frame if it would lose every hit or every scored voxel."""

    def move(name: str, volume: NDArray[Any]) -> NDArray[Any]:
        return shift.apply(volume, fill_of(name, volume, tsdf_is_flipped=frame.tsdf_is_flipped))

    moved = frame.map_volumes(move)
    return moved if moved.hit_mask.any() and moved.scored_mask.any() else frame


def move_voxels(frame: Frame, symmetry: Symmetry) -> Frame:
    """A frame with moved voxels; image and label map are unchanged, and the mapping moves with the voxels.

    Raises:
        ValueError: exchanging X and Y of different size, after which frames would not fit into one batch.
    """
    symmetry.check_grid(frame.grid_shape, source=f"frame {frame.frame_id}", advice="switch 3D augmentation off")
    return frame.map_volumes(lambda _, volume: np.ascontiguousarray(symmetry.apply(volume)))


def augment_2d(frame: Frame, *, generator: torch.Generator) -> Frame:
    """Changes geometry (``draw_geometry``) and colors (``draw_colors``) of the image; the mapping follows.

    The image becomes float32 on the scale 0..255, padded with ``IMAGE_MEAN``, which normalizes to exactly 0.

    Raises:
        ValueError: a frame without image, or with a label map, which would no longer fit the mapping.
    """
    if frame.image is None:
        raise ValueError(f"frame {frame.frame_id}: expected an image for 2D augmentation, found none; read_image=True")
    if frame.label_map is not None:
        raise ValueError(
            f"frame {frame.frame_id}: expected an image without 2D label map for 2D augmentation, found both, and one "
            "mapping cannot follow both; read one of them (read_image, read_label_map), or switch 2D augmentation off"
        )
    geometry = draw_geometry(generator)
    colors = draw_colors(generator)
    image = torch.from_numpy(np.array(frame.image)).permute(2, 0, 1).to(torch.float32)
    truth = None if frame.label_2d is None else torch.from_numpy(np.array(frame.label_2d))
    # Colors before padding, so that contrast refers to the mean of the picture only and the padding stays exact.
    image = pad_image(colors.apply(geometry.apply(image)))
    return dataclasses.replace(
        frame,
        image=image.permute(1, 2, 0).contiguous().numpy(),
        mapping=geometry.apply_to_mapping(frame.mapping),
        depth_hit=frame.hit_mask,
        label_2d=None if truth is None else geometry.apply_to_classes(truth).numpy(),
    )


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Resizing, then cropping to at most 480x640, then mirroring; ``pad_image`` fills up below and to the right.

    Attributes:
        size: rows and columns after resizing.
        corner: row and column of the resized image where the crop starts; 0 along an axis that is not cropped.
        is_mirrored: left and right are exchanged after cropping.
    """

    size: tuple[int, int] = IMAGE_SHAPE
    corner: tuple[int, int] = (0, 0)
    is_mirrored: bool = False

    @property
    def crop_size(self) -> tuple[int, int]:
        """Rows and columns after cropping."""
        return min(self.size[0], IMAGE_SHAPE[0]), min(self.size[1], IMAGE_SHAPE[1])

    def apply(self, image: Tensor) -> Tensor:
        """[3, crop rows, crop columns] of a [3, 480, 640] image, bilinear."""
        if self.size != tuple(image.shape[1:]):
            image = image_functional.resize(image, list(self.size), antialias=True)
        image = image_functional.crop(image, *self.corner, *self.crop_size)
        return image_functional.horizontal_flip(image) if self.is_mirrored else image

    def apply_to_classes(self, classes: Tensor) -> Tensor:
        """[480, 640] uint8 of a map of classes [480, 640], nearest; 255 where the image is padded."""
        if self.size != tuple(classes.shape):
            row, column = (
                # The center of each new pixel, in whole numbers, as in ``apply_to_mapping``.
                (2 * torch.arange(new, device=classes.device) + 1) * old // (2 * new)
                for new, old in zip(self.size, classes.shape, strict=True)
            )
            classes = classes[row[:, None], column]
        top, left = self.corner
        rows, columns = self.crop_size
        cropped = classes[top : top + rows, left : left + columns]
        padded = torch.full(IMAGE_SHAPE, IGNORE_LABEL, dtype=torch.uint8, device=classes.device)
        padded[:rows, :columns] = cropped.flip(1) if self.is_mirrored else cropped
        return padded

    def apply_to_mapping(self, mapping: NDArray[np.int32]) -> NDArray[np.int32]:
        """``apply_to_pixels`` for an array."""
        moved: NDArray[np.int32] = self.apply_to_pixels(torch.from_numpy(np.array(mapping))).numpy()
        return moved

    def apply_to_pixels(self, mapping: Tensor) -> Tensor:
        """A mapping [any shape] to pixels of the image before these changes -> to those after them, -1 where cropped.

        Pixel centers: index c maps to ``(c + 0.5) s - 0.5``, with s the ratio of the sizes, and is rounded.
        """
        rows, columns = IMAGE_SHAPE
        wide = mapping.long()
        # floor((c + 0.5) s) in whole numbers: the rounding above, with halves going up
        row = (2 * (wide // columns) + 1) * self.size[0] // (2 * rows) - self.corner[0]
        column = (2 * (wide % columns) + 1) * self.size[1] // (2 * columns) - self.corner[1]
        crop_rows, crop_columns = self.crop_size
        is_inside = (row >= 0) & (row < crop_rows) & (column >= 0) & (column < crop_columns) & (mapping != UNMAPPED)
        if self.is_mirrored:
            column = crop_columns - 1 - column
        return (row * columns + column).masked_fill_(~is_inside, UNMAPPED).to(torch.int32)


@dataclasses.dataclass(frozen=True)
class Colors:
    """Photometric changes; each default changes nothing.

    Attributes:
        brightness: added, on the scale 0..255.
        contrast: factor of the distance to the mean gray of the image.
        saturation: factor of the distance to the gray of the pixel.
        hue: rotation of the hue as a fraction of the full circle, -0.5..0.5.
        order: in which these four are applied, counted from 0; as in torchvision's ColorJitter, whose contrast refers
            to the mean gray too.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)

    def apply(self, image: Tensor) -> Tensor:
        """The changed image, [3, rows, columns] float32 on the scale 0..255, clipped to it after each change."""
        changes: list[tuple[bool, Callable[[Tensor], Tensor]]] = [
            (self.brightness != 0, lambda image: (image + self.brightness / 255).clamp(0, 1)),
            (self.contrast != 1, lambda image: image_functional.adjust_contrast(image, self.contrast)),
            (self.saturation != 1, lambda image: image_functional.adjust_saturation(image, self.saturation)),
            (self.hue != 0, lambda image: image_functional.adjust_hue(image, self.hue)),
        ]
        if not any(is_used for is_used, _ in changes):
            return image
        image = image / 255
        for index in self.order:
            is_used, change = changes[index]
            image = change(image) if is_used else image
        return image * 255


def pad_image(image: Tensor) -> Tensor:
    """[3, 480, 640] float32 of an image of at most that size, padded below and to the right with ``IMAGE_MEAN``."""
    padded = color_planes(IMAGE_MEAN, image.device).repeat(1, *IMAGE_SHAPE)
    padded[:, : image.shape[1], : image.shape[2]] = image
    return padded


def draw_geometry(generator: torch.Generator) -> Geometry:
    """Resizing by 0.8..1.2 (probability 0.5), a crop anywhere, mirroring (probability 0.5). Takes five draws."""
    resize, scale, top, left, mirror = _draw(5, generator)
    ratio = _between(_RESIZE, scale) if resize < _PROBABILITY else 1.0
    size = (round(IMAGE_SHAPE[0] * ratio), round(IMAGE_SHAPE[1] * ratio))
    room = (max(size[0] - IMAGE_SHAPE[0], 0), max(size[1] - IMAGE_SHAPE[1], 0))
    corner = (int(top * (room[0] + 1)), int(left * (room[1] + 1)))
    return Geometry(size=size, corner=corner, is_mirrored=mirror < _PROBABILITY)


def draw_colors(generator: torch.Generator) -> Colors:
    """Brightness +-32, contrast and saturation 0.5..1.5, hue +-0.1, each with probability 0.5, in random order.

    Takes twelve draws.
    """
    chances, values, ranks = _draw(4, generator), _draw(4, generator), _draw(4, generator)
    is_used = [chance < _PROBABILITY for chance in chances]
    return Colors(
        brightness=_between((-_BRIGHTNESS, _BRIGHTNESS), values[0]) if is_used[0] else 0.0,
        contrast=_between(_CONTRAST, values[1]) if is_used[1] else 1.0,
        saturation=_between(_SATURATION, values[2]) if is_used[2] else 1.0,
        hue=_between((-_HUE, _HUE), values[3]) if is_used[3] else 0.0,
        order=tuple(sorted(range(4), key=ranks.__getitem__)),
    )


def _draw(count: int, generator: torch.Generator) -> list[float]:
    """Numbers in [0, 1)."""
    values: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return values


def _between(limits: tuple[float, float], fraction: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * fraction
