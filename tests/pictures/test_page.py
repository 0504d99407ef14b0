"""The page as a file: it holds what it shows, needs nothing else, and refuses what it cannot show."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import CLASS_NAMES, IGNORE_LABEL
from ammnet_sparse.pictures.comparison import ERROR_COLORS
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.page import Scene, write_page

SHAPE = (24, 12, 24)
LEFT, RIGHT, HIGH, LOW, NEAR, FAR = (
    CLASS_NAMES.index(name) for name in ("furniture", "table", "sofa", "bed", "floor", "tvs")
)


def lopsided() -> NDArray[np.uint8]:
    """Six things in a frame that no mirroring or turning would leave as they are."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:4, 0:8, 8:12] = LEFT
    labels[20:23, 0:8, 8:12] = RIGHT
    labels[10:14, 9:12, 8:12] = HIGH
    labels[10:14, 0:3, 8:12] = LOW
    labels[11:13, 0:1, 1:4] = NEAR
    labels[11:13, 0:2, 20:23] = FAR
    return labels


def read_data(path: Path) -> dict[str, Any]:
    """What the page hands to its script."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert match
    data: dict[str, Any] = json.loads(match[1])
    return data


def volumes_of(entry: dict[str, Any]) -> bytes:
    return gzip.decompress(base64.b64decode(entry["volumes"]))


def test_page_holds_volumes_colors_and_names(tmp_path: Path) -> None:
    prediction, truth = lopsided(), lopsided()
    truth[0, 0, 0] = IGNORE_LABEL
    mask = np.ones(SHAPE, dtype=np.bool_)
    mask[5] = False
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    image[2, 3] = (9, 8, 7)
    hit = np.full(SHAPE, -1, dtype=np.int32)
    hit[5, 1, 2] = 2 * 5 + 3
    write_page(tmp_path / "p.html", [Scene("one", prediction, truth, mask, hit, image, note="so so")], title="T")
    data = read_data(tmp_path / "p.html")
    (entry,) = data["scenes"]
    count = prediction.size
    flags = mask.astype(np.uint8)
    flags[5, 1, 2] |= 2
    expected = prediction.tobytes() + flags.tobytes() + truth.tobytes() + bytes((9, 8, 7))
    assert volumes_of(entry) == expected
    assert len(expected) == 3 * count + 3
    assert (entry["name"], entry["note"], entry["shape"]) == ("one", "so so", list(SHAPE))
    assert entry["image"].startswith("data:image/jpeg;base64,")
    assert entry["camera"] is None
    assert [each["name"] for each in data["classes"]] == list(CLASS_NAMES)
    assert {each["name"]: tuple(each["color"]) for each in data["errors"]} == ERROR_COLORS


def test_page_without_scenes_has_no_viewer(tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", [], title="T", introduction="<p>nothing yet</p>")
    text = (tmp_path / "p.html").read_text("utf-8")
    assert "<p>nothing yet</p>" in text
    assert "<canvas" not in text
    with pytest.raises(ValueError, match="at least one scene"):
        write_page(tmp_path / "q.html", [], title="T")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prediction", {"prediction": np.full(SHAPE, 12, dtype=np.uint8)}),
        ("truth", {"truth": np.zeros((2, 2, 2), dtype=np.uint8)}),
        ("mask", {"mask": np.ones((2, 2, 2), dtype=np.bool_)}),
        ("hit", {"hit": np.zeros(SHAPE, dtype=np.float32)}),
        ("hit", {"hit": np.full(SHAPE, 6), "image": np.zeros((2, 3, 3), dtype=np.uint8)}),
        ("image", {"image": np.zeros((2, 3, 4), dtype=np.uint8)}),
    ],
)
def test_bad_scenes_are_refused_by_name(name: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"name": "kitchen", "prediction": lopsided(), **change}
    with pytest.raises(ValueError, match=f"scene 'kitchen': {name}"):
        Scene(**arguments)


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    inserted = "<section><script>alert(1)</script></section>"
    name = "</script><script>alert(2)</script>"
    write_page(path, [Scene(name, lopsided(), note=name)], title=f"<b>{name}", introduction=inserted)
    text = path.read_text("utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (sources,) = re.findall(r"script-src ([^;]*)", policy)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    assert len(scripts) == 2 and sources == hashes[1]  # the inserted one comes first and has no hash
    assert "alert(2)" not in "".join(scripts)
    write_page(path, [], title="T", introduction=inserted)
    assert "script-src 'none';" in path.read_text("utf-8")


def test_page_of_a_frame_shows_what_is_scored(tmp_path: Path) -> None:
    label = lopsided()
    label[3] = IGNORE_LABEL
    weight = np.zeros(SHAPE, dtype=np.bool_)
    weight[:6] = True
    mapping = np.full(SHAPE, -1, dtype=np.int32)
    mapping[1, 1, 1] = 7
    frame = Frame("0007", np.zeros(SHAPE, dtype=np.float32), mapping, weight, label)
    scene = CompletedScene(frame, lopsided()).to_scene()
    assert scene.mask is not None
    assert scene.name == "0007"
    assert scene.mask[:3].all() and not scene.mask[3].any() and not scene.mask[6:].any()
    assert scene.hit_mask.sum() == 1
    assert scene.hit_colors is None
    unknown = Frame("0008", np.zeros(SHAPE, dtype=np.float32), mapping, weight)
    np.testing.assert_array_equal(CompletedScene(unknown, lopsided()).to_scene().mask, weight)
