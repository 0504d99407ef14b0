"""Colors of classes in pictures: the set's own, or distinct ones for every kind of color vision."""

from typing import Literal, get_args

from ammnet_sparse.data.set_info import Color, SetInfo

Palette = Literal["set", "distinct"]
"""``set``: as the set says, for NYU the colors of the field's papers. ``distinct``: see ``painted``."""

# Fourteen, as many as a set may have classes. Found by a search for the largest least distance between any two in
# CIELAB, seen with normal vision and as simulated without one kind of cones. The hues are near those of the field.
_OF_NYU: dict[str, Color] = {
    "ceiling": (210, 35, 74),
    "floor": (93, 213, 145),
    "wall": (138, 175, 169),
    "window": (151, 202, 255),
    "chair": (240, 230, 124),
    "bed": (255, 181, 37),
    "sofa": (145, 126, 225),
    "table": (2, 58, 103),
    "tvs": (78, 49, 9),
    "furniture": (182, 81, 0),
    "objects": (127, 106, 144),
}
_OTHERS: tuple[Color, ...] = ((75, 17, 146), (8, 101, 255), (7, 1, 241))


def painted(info: SetInfo, palette: Palette) -> SetInfo:
    """The set with the colors of a palette.

    In ``distinct`` any two classes differ by at least 30 in CIELAB, and by 23 without red or green cones, 17 without
    blue ones (simulated). Classes that have the name of one of NYU's have its color in every set.

    Raises:
        ValueError: another palette.
    """
    if palette not in get_args(Palette):
        raise ValueError(f"palette: expected one of {', '.join(get_args(Palette))}, found {palette!r}")
    if palette == "set":
        return info
    empty, *names = info.classes
    free = iter([*(color for name, color in _OF_NYU.items() if name not in info.classes), *_OTHERS])
    colors = {name: _OF_NYU.get(name) or next(free) for name in names}
    return info.model_copy(update={"classes": {empty: info.classes[empty], **colors}})
