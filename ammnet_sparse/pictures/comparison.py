"""Pictures of a prediction beside the truth, seen from the camera's side and from above."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ammnet_sparse.data.grid import EMPTY_LABEL, IGNORE_COLOR, IGNORE_LABEL, NUM_LABEL_MAP_CLASSES
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.pictures.rendering import camera_side_view, framed, render_voxels, top_view

Rgb = tuple[int, int, int]

ERROR_COLORS: dict[str, Rgb] = {
    "right class": (205, 205, 205),
    "wrong class": (247, 183, 51),
    "missed": (51, 105, 222),
    "invented": (214, 51, 51),
}
"""Colors of the error view: both occupied (right or wrong class), only the truth, only the prediction."""

# The published 2D label maps have void and NYU's 13 classes in alphabetical order (checked against the labels of the
# mapped voxels); books and pictures are objects in 3D.
_LABEL_MAP_CLASSES = (
    "bed", "objects", "ceiling", "chair", "floor", "furniture", "objects",
    "objects", "sofa", "table", "tvs", "wall", "window",
)  # fmt: skip
_VOID_COLOR = (235, 235, 235)
_WHITE, _INK, _GRAY = (255, 255, 255), (32, 32, 32), (120, 120, 120)
_GAP, _TEXT_SIZE, _LINE_HEIGHT, _SWATCH = 12, 15, 24, 14


def render_comparison(
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None = None,
    *,
    image: NDArray[np.uint8] | None = None,
    label_map: NDArray[np.uint8] | None = None,
    visible_mask: NDArray[np.bool_] | None = None,
    hide_ceiling: bool = True,
    panel_size: int = 360,
    title: str = "",
    info: SetInfo = NYU,
) -> NDArray[np.uint8]:
    """One picture: the input, the prediction, the truth and the errors, each from the camera's side and from above.

    Without truth and with one input image, all views are in one row. Both views show X growing to the right and what is
    drawn as large as it fits. From the camera's side height points up; from above, Y (away from the camera) does. Cubes
    are colored by class, with a legend of the classes that occur, and errors by ``ERROR_COLORS``. The pale plane is the
    bottom of the grid.

    Args:
        prediction: [X, H, Y] uint8, a class; 255 is not drawn.
        truth: the same; voxels of 255 are drawn nowhere in the errors. None: no truth and no errors are shown.
        image: [rows, columns, 3] uint8 RGB, the input image.
        label_map: [rows, columns] uint8, the 2D prediction, 0..13.
        visible_mask: [X, H, Y] bool, the voxels to draw, for instance the scored ones; None: all.
        hide_ceiling: omit the ceiling, to look into the room.
        panel_size: edge of one view in pixels.
        title: a line above the picture.
        info: the set, which has names and colors of the classes.

    Returns:
        [rows, columns, 3] uint8 RGB.

    Raises:
        ValueError: volumes of different shapes or with invalid values, or an image of another shape.
    """
    check_volume("prediction", prediction, prediction.shape, info=info)
    visible = np.ones(prediction.shape, dtype=np.bool_) if visible_mask is None else visible_mask.astype(np.bool_)
    check_shape("visible_mask", visible, prediction.shape)
    hidden = info.ceiling if hide_ceiling else None
    shown = np.bincount(prediction[visible], minlength=IGNORE_LABEL + 1)
    volumes = {"Prediction": _by_class(prediction, visible, hidden, info)}
    if truth is not None:
        check_volume("truth", truth, prediction.shape, info=info)
        shown = shown + np.bincount(truth[visible], minlength=IGNORE_LABEL + 1)
        volumes["Ground truth"] = _by_class(truth, visible, hidden, info)
        volumes["Errors"] = _by_error(prediction, truth, visible, hidden)
    columns = _columns(volumes, panel_size)
    inputs = _input_panels(image, label_map, panel_size, info)
    if len(inputs) == 1 and truth is None:  # all in one row
        from_side, from_above = columns["Prediction"]
        columns = {"Prediction": [from_side], "From above": [from_above]}
    legends = functools.partial(_legends, shown, hidden, info, has_errors=truth is not None)
    is_below_input = len(inputs) == 1 and truth is not None and len(legends(width=panel_size)) <= panel_size
    if is_below_input:
        inputs.append(_top_of_square(legends(width=panel_size)))
    body = _table({"Input": inputs, **columns} if inputs else columns, panel_size)
    heading = [_text_line(title, body.shape[1])] if title else []
    stacked = np.concatenate([*heading, body, *([] if is_below_input else [legends(width=body.shape[1])])])
    return np.pad(stacked, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)


def class_colors(labels: NDArray[np.uint8], info: SetInfo = NYU) -> NDArray[np.uint8]:
    """[..., 3] uint8 RGB of labels [...], classes of a set or 255."""
    palette = np.full((IGNORE_LABEL + 1, 3), IGNORE_COLOR, dtype=np.uint8)
    palette[: info.num_classes] = list(info.classes.values())
    return palette[labels]


def label_map_colors(label_map: NDArray[np.uint8], info: SetInfo = NYU) -> NDArray[np.uint8]:
    """[rows, columns, 3] uint8 RGB of a 2D label map [rows, columns], 0..13; void pale.

    The classes have the colors of the set, or NYU's where the set has no class of the name.

    Raises:
        ValueError: another number of axes, or other values.
    """
    if label_map.ndim != 2 or int(label_map.max(initial=0)) >= NUM_LABEL_MAP_CLASSES:
        raise ValueError(
            f"label_map: expected [rows, columns] of 0..{NUM_LABEL_MAP_CLASSES - 1}, "
            f"found {list(label_map.shape)} up to {label_map.max(initial=0)}"
        )
    colors = NYU.classes | info.classes
    palette = np.array([_VOID_COLOR, *(colors[name] for name in _LABEL_MAP_CLASSES)], dtype=np.uint8)
    return palette[label_map]


def depth_shades(depth: NDArray[np.floating]) -> NDArray[np.uint8]:
    """[rows, columns, 3] uint8 of depth in meters [rows, columns]: near bright, far dark, missing (0) white."""
    measured = depth[depth > 0]
    near, far = np.percentile(measured, (2, 98)) if measured.size else (0.0, 1.0)
    share = np.clip((depth - near) / max(float(far - near), 1e-6), 0, 1)
    shades = np.where(depth > 0, 225 - 185 * share, 255).round().astype(np.uint8)
    return np.repeat(shades[..., None], 3, axis=2)


def _by_class(
    labels: NDArray[np.uint8], visible: NDArray[np.bool_], hidden: int | None, info: SetInfo
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Colors [X, H, Y, 3] of a volume's voxels, and which are drawn."""
    drawn = visible & is_occupied(labels)
    if hidden is not None:
        drawn &= labels != hidden
    return class_colors(labels, info), drawn


def _by_error(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], visible: NDArray[np.bool_], hidden: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """As ``_by_class``, of the errors."""
    is_predicted, is_true = is_occupied(prediction), is_occupied(truth)
    kinds = {
        "right class": is_predicted & is_true & (prediction == truth),
        "wrong class": is_predicted & is_true & (prediction != truth),
        "missed": ~is_predicted & is_true,
        "invented": is_predicted & ~is_true,
    }
    colors = np.zeros((*truth.shape, 3), dtype=np.uint8)
    for kind, mask in kinds.items():
        colors[mask] = ERROR_COLORS[kind]
    drawn = visible & (is_predicted | is_true) & (truth != IGNORE_LABEL)
    if hidden is not None:
        drawn &= (truth != hidden) & ~(~is_true & (prediction == hidden))
    return colors, drawn


def _columns(
    volumes: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.bool_]]], size: int
) -> dict[str, Sequence[NDArray[np.uint8]]]:
    """Each volume from the camera's side and from above, all in the same place of their views."""
    anywhere = np.logical_or.reduce([drawn for _, drawn in volumes.values()])
    x, height, y = anywhere.shape
    views = [framed(view((x, height, y)), anywhere) for view in (camera_side_view, top_view)]
    return {
        name: [render_voxels(colors, drawn, view=view, size=size) for view in views]
        for name, (colors, drawn) in volumes.items()
    }


def _input_panels(
    image: NDArray[np.uint8] | None, label_map: NDArray[np.uint8] | None, size: int, info: SetInfo
) -> list[NDArray[np.uint8]]:
    panels = []
    if image is not None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image: expected [rows, columns, 3] uint8, found {list(image.shape)} {image.dtype}")
        panels.append(_fit(image, size, Image.Resampling.LANCZOS))
    if label_map is not None:
        panels.append(_fit(label_map_colors(label_map, info), size, Image.Resampling.NEAREST))
    return panels


def _fit(image: NDArray[np.uint8], size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """The image scaled to fit and centered in a white square of ``size`` pixels."""
    rows, columns = image.shape[:2]
    scale = size / max(rows, columns)
    new_rows, new_columns = max(1, round(rows * scale)), max(1, round(columns * scale))
    resized = Image.fromarray(image).resize((new_columns, new_rows), resampling)
    square = Image.new("RGB", (size, size), _WHITE)
    square.paste(resized, ((size - new_columns) // 2, (size - new_rows) // 2))
    return np.asarray(square)


def _legends(
    shown: NDArray[np.int64], hidden: int | None, info: SetInfo, *, has_errors: bool, width: int
) -> NDArray[np.uint8]:
    """The legend of the classes with voxels, ``shown`` by class, and that of the errors, [rows, width, 3]."""
    classes = [
        (f"{name} (left out of the views)" if label == hidden else name, color)
        for label, (name, color) in enumerate(info.classes.items())
        if label != EMPTY_LABEL and shown[label]
    ]
    errors = [_legend(list(ERROR_COLORS.items()), width, heading="Errors:")] if has_errors else []
    return np.concatenate([_legend(classes, width), *errors])


def _top_of_square(panel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A panel [rows, size, 3] with white below it, [size, size, 3]."""
    rows, size = panel.shape[:2]
    return np.pad(panel, ((0, size - rows), (0, 0), (0, 0)), constant_values=255)


def _table(columns: Mapping[str, Sequence[NDArray[np.uint8]]], size: int) -> NDArray[np.uint8]:
    """Columns of panels under their names. White above and below a single row is cut off."""
    blank = np.full((size, size, 3), 255, dtype=np.uint8)
    num_rows = max(map(len, columns.values()))
    rows = [_beside([_text_line(name, size) for name in columns])]
    for index in range(num_rows):
        row = _beside([panels[index] if index < len(panels) else blank for panels in columns.values()])
        inked = np.flatnonzero((row < 255).any(axis=(1, 2)))
        if num_rows == 1 and inked.size:
            row = row[inked[0] : inked[-1] + 1]
        rows += [row, np.full((_GAP, row.shape[1], 3), 255, dtype=np.uint8)]
    return np.concatenate(rows)


def _beside(panels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    parts = [part for panel in panels for part in (panel, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _text_line(text: str, width: int) -> NDArray[np.uint8]:
    line = Image.new("RGB", (width, _LINE_HEIGHT), _WHITE)
    ImageDraw.Draw(line).text((0, _LINE_HEIGHT / 2), text, fill=_INK, font=_font(), anchor="lm")
    return np.asarray(line)


def _legend(entries: Sequence[tuple[str, Rgb]], width: int, heading: str = "") -> NDArray[np.uint8]:
    """Names beside squares of their colors, in as many lines as ``width`` requires."""
    font = _font()
    places: list[tuple[float, int, str, Rgb]] = []
    x, row = (font.getlength(heading) + _GAP if heading else 0.0), 0
    for name, color in entries:
        needed = _SWATCH + 6 + font.getlength(name)
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        places.append((x, row, name, color))
        x += needed + 18
    legend = Image.new("RGB", (width, (row + 1) * _LINE_HEIGHT), _WHITE)
    draw = ImageDraw.Draw(legend)
    draw.text((0, _LINE_HEIGHT / 2), heading, fill=_INK, font=font, anchor="lm")
    for x, row, name, color in places:
        middle = (row + 0.5) * _LINE_HEIGHT
        corners = (x, middle - _SWATCH / 2, x + _SWATCH, middle + _SWATCH / 2)
        draw.rectangle(corners, fill=color, outline=_GRAY)
        draw.text((x + _SWATCH + 6, middle), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(legend)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT_SIZE)


def is_occupied(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where labels of any shape are occupied: neither empty nor ignored."""
    return (labels != EMPTY_LABEL) & (labels != IGNORE_LABEL)


def check_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raises ValueError if a volume does not have three axes and the expected shape."""
    if len(shape) != 3 or array.shape != shape:
        expected = list(shape) if len(shape) == 3 else "[X, H, Y]"
        raise ValueError(f"{name}: expected {expected}, found {list(array.shape)}")


def check_volume(name: str, labels: NDArray[np.uint8], shape: tuple[int, ...], *, info: SetInfo) -> None:
    """Raises ValueError if labels are not uint8 classes of a set or 255 of this shape."""
    check_shape(name, labels, shape)
    stray = (labels >= info.num_classes) & (labels != IGNORE_LABEL)
    if labels.dtype != np.uint8 or stray.any():
        found = f"{labels.dtype}" + (f" with {np.unique(labels[stray])[:4].tolist()}" if stray.any() else "")
        raise ValueError(f"{name}: expected uint8 classes 0..{info.num_classes - 1} or {IGNORE_LABEL}, found {found}")
