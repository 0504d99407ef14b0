"""Conventions told from content: every wrong one is named, on generated rooms and single frames of them."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.data.sets.conventions import convention_problems, conventions_of, unobserved_of
from ammnet_sparse.data.sets.projection_fit import judge_mapping
from ammnet_sparse.data.synthetic.frame import generate_frame
from ammnet_sparse.data.volumes.tsdf import flip_tsdf


@pytest.fixture(scope="module")
def rooms() -> list[Frame]:
    return [_room(index) for index in range(3)]


def _room(index: int) -> Frame:
    made = generate_frame(3, index, noise="kinect")
    shape = (60, 36, 60)
    return Frame(
        frame_id=f"{index:04d}",
        tsdf=made.tsdf.reshape(shape).astype(np.float32),
        mapping=made.mapping.reshape(shape).astype(np.int32),
        label_weight=made.label_weight.reshape(shape).astype(np.bool_),
        label=made.label.reshape(shape).astype(np.uint8),
    )


def _problems(frames: list[Frame], *, is_flipped: bool = False) -> list[str]:
    measures = {frame.frame_id: measure for frame in frames if (measure := conventions_of(frame)) is not None}
    assert len(measures) == len(frames)
    return convention_problems(measures, info=SetInfo(dataset="nyucad" if is_flipped else "nyu"))


def _stored_as(values: NDArray[Any], order: tuple[int, int, int]) -> NDArray[Any]:
    """What a reader of (X, height, Y) makes of an array whose axes are stored in another order."""
    return np.ascontiguousarray(values.transpose(order)).reshape(values.shape)


def _of_all(frame: Frame, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Frame:
    assert frame.label is not None
    return dataclasses.replace(frame, tsdf=change(frame.tsdf), mapping=change(frame.mapping), label=change(frame.label))


def _of_smaller_image(mapping: NDArray[np.int32], rows: int, columns: int) -> NDArray[np.int32]:
    row, column = mapping // 640 * rows // 480, mapping % 640 * columns // 640
    return np.where(mapping < 0, -1, row * columns + column).astype(np.int32)


def _other_classes(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table = np.arange(256, dtype=np.uint8)
    table[:12] = [0, 3, 5, 10, 11, 4, 1, 7, 8, 9, 6, 2]
    return table[label]


WRONG: dict[str, tuple[Callable[[Frame], Frame], str]] = {
    "flipped TSDF": (lambda f: dataclasses.replace(f, tsdf=flip_tsdf(f.tsdf)), "a flipped TSDF in this layout"),
    "TSDF as X, Y, height": (
        lambda f: dataclasses.replace(f, tsdf=_stored_as(f.tsdf, (0, 2, 1))),
        "TSDF and mapping do not match",
    ),
    "labels as X, Y, height": (
        lambda f: dataclasses.replace(f, label=_stored_as(f.label, (0, 2, 1))),  # type: ignore[arg-type]
        r"read with axes \(X, Y, height\)",
    ),
    "labels with X and Y exchanged": (
        lambda f: dataclasses.replace(f, label=_stored_as(f.label, (2, 1, 0))),  # type: ignore[arg-type]
        r"read with axes \(Y, height, X\)",
    ),
    "labels mirrored": (lambda f: dataclasses.replace(f, label=f.label[::-1].copy()), "read with X mirrored"),  # type: ignore[index]
    "labels of other classes": (
        lambda f: dataclasses.replace(f, label=_other_classes(f.label)),  # type: ignore[arg-type]
        "labels of another list of classes",
    ),
    "mapping of 240 x 320": (
        lambda f: dataclasses.replace(f, mapping=_of_smaller_image(f.mapping, 240, 320)),
        "an image that is 320 wide instead of 640",
    ),
    "mapping of 427 x 561": (
        lambda f: dataclasses.replace(f, mapping=_of_smaller_image(f.mapping, 427, 561)),
        "an image that is 561 wide instead of 640",
    ),
    "everything as X, Y, height": (
        lambda f: _of_all(f, lambda v: _stored_as(v, (0, 2, 1))),
        r"stored as \(X, Y, height",
    ),
    "everything mirrored": (lambda f: _of_all(f, lambda v: v[::-1].copy()), "left and right are mirrored"),
    "everything upside down": (lambda f: _of_all(f, lambda v: v[:, ::-1].copy()), "height axis points down"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("count", [1, 3])
def test_wrong_conventions_are_named(kind: str, count: int, rooms: list[Frame]) -> None:
    change, message = WRONG[kind]
    problems = _problems([change(frame) for frame in rooms[:count]])
    assert problems
    if count > 1:
        assert any(re.search(message, problem) for problem in problems), problems


def test_a_single_tsdf_unlike_the_others_is_named(rooms: list[Frame]) -> None:
    flipped = [dataclasses.replace(frame, tsdf=flip_tsdf(frame.tsdf)) for frame in rooms]
    for count in (2, 3):
        (problem,) = _problems([*rooms[: count - 1], flipped[count - 1]])
        odd = f"{rooms[count - 1].frame_id} (median |TSDF| of hit voxels 0.9"
        assert f"found 1 of {count} unlike the others: {odd}" in problem
    # Where most frames are of another convention, those named are right.
    of_set, of_frame = _problems([rooms[0], *flipped[1:]])
    assert "a flipped TSDF in this layout" in of_set and "unlike the others: 0000 (" in of_frame


def test_right_conventions_are_left_alone(rooms: list[Frame]) -> None:
    assert _problems(rooms) == []
    for frame in rooms:
        assert _problems([frame]) == []
    for unobserved in ("free", "surface"):
        cad = [
            dataclasses.replace(f, tsdf=flip_tsdf(f.tsdf, unobserved=unobserved), tsdf_is_flipped=True)  # type: ignore[arg-type]
            for f in rooms
        ]
        assert _problems(cad, is_flipped=True) == []
        assert {unobserved_of(frame.tsdf) for frame in cad} == {unobserved}
    unflipped = [dataclasses.replace(frame, tsdf_is_flipped=True) for frame in rooms]
    assert "an unflipped TSDF in this layout" in _problems(unflipped, is_flipped=True)[0]


def test_frames_without_evidence_are_not_judged(rooms: list[Frame]) -> None:
    nothing = dataclasses.replace(rooms[0], mapping=np.full_like(rooms[0].mapping, -1))
    assert conventions_of(nothing) is None
    assert convention_problems({}, info=NYU) == []
    assert _problems([dataclasses.replace(rooms[0], label=None)]) == []


def test_pixels_of_a_smaller_image_without_geometry(rooms: list[Frame]) -> None:
    hit = rooms[0].mapping >= 0
    pixels = np.linspace(0, 320 * 240 - 1, int(hit.sum())).astype(np.int32)
    mapping = np.full_like(rooms[0].mapping, -1)
    mapping[hit] = pixels
    (problem,) = _problems([dataclasses.replace(rooms[0], mapping=mapping)])
    assert "pixels of a smaller image" in problem
    mapping[hit] = pixels * 3
    assert _problems([dataclasses.replace(rooms[0], mapping=mapping)]) == []


@pytest.mark.parametrize(
    ("sign_x", "sign_h", "expected"),
    [(1, -1, []), (-1, -1, ["left and right are mirrored"]), (1, 1, ["the height axis points down"])],
)
def test_sides_without_a_projection(sign_x: int, sign_h: int, expected: list[str]) -> None:
    mapping = np.full((60, 36, 60), -1, dtype=np.int32)
    x, height = np.mgrid[:60, :36]
    column, row = 320 + sign_x * (10 * (x - 30)), 240 + sign_h * (12 * (height - 18))
    mapping[:, :, 40] = row * 640 + column  # of a single plane
    found = judge_mapping(mapping)
    assert len(found) == len(expected) and all(text in problem for text, problem in zip(expected, found, strict=True))
