"""The wording of the messages that users meet most; all other tests assert the type of an error and what it names."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ammnet_sparse.camera.files.intrinsics import read_intrinsics
from ammnet_sparse.cli.errors import describe
from ammnet_sparse.cli.main import main
from ammnet_sparse.cli.options import choose_device
from ammnet_sparse.config import load_config
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.source import open_frames, open_set
from ammnet_sparse.models.weights.shipped import find_weights
from ammnet_sparse.training.checkpoints import check_same_run, load_state, save_run_weights
from ammnet_sparse.training.loop import Run
from ammnet_sparse.training.networks import build_networks, initialize_from
from ammnet_sparse.training.records import Progress
from tests.data.frames import random_frame, write_frame
from tests.training.support import GRID, tiny_config


def read_without_mapping(folder: Path) -> None:
    write_frame(folder, random_frame(1, frame_id="0001", grid_shape=GRID))
    (folder / "Mapping" / "0001.npz").unlink()
    FrameFolder(folder, grid_shape=GRID).read("0001")


def open_without_label_maps(folder: Path) -> None:
    write_frame(folder, random_frame(1, frame_id="0001", grid_shape=GRID))
    open_set(folder, dataset="nyu", config=tiny_config().model)


def resume_with(folder: Path, override: str) -> None:
    check_same_run(load_config(None, [override]), load_config().model_dump(mode="json"), folder=folder)


def start_from_another_width(folder: Path) -> None:
    given = build_networks(tiny_config())
    save_run_weights(folder, "best.safetensors", given.generator, given.discriminator, metadata={})
    initialize_from(build_networks(tiny_config(model={"width": 16})), folder / "best.safetensors")


def skip_a_third_step(folder: Path) -> None:
    run = SimpleNamespace(
        progress=Progress(step=3, skipped_in_a_row=2),
        config=load_config(),
        game=SimpleNamespace(undo_statistics=lambda: None),
    )
    Run._skip(run, ["scene"], [SimpleNamespace(frame_ids=("0001", "0002"))])  # type: ignore[arg-type, list-item]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda folder: open_frames(folder / "absent"),
            "DIR/absent: expected the folder of a set, found nothing; check the path",
        ),
        (
            read_without_mapping,
            "DIR/Mapping/0001.npz: expected a file, found none; add it, or remove the frame from the list",
        ),
        (
            open_without_label_maps,
            "DIR: model.image_encoder: seg2d needs 2D label maps (folder Seg2D), "
            "found none; add them, or use a network that does not read them",
        ),
        (
            lambda folder: load_config(None, ["training.epoch=3"]),
            "defaults with overrides training.epoch=3:\n  training.epoch: unknown key; did you mean training.epochs?",
        ),
        (
            lambda folder: load_config(None, ["training.epochs=0"]),
            "defaults with overrides training.epochs=0:\n"
            "  training.epochs: Input should be greater than or equal to 1 (found 0)",
        ),
        (
            lambda folder: resume_with(folder, "model.width=16"),
            "model.width: a resumed run keeps 256, found 16; to change it, start a new run with "
            "`initial_weights` of this one",
        ),
        (
            lambda folder: resume_with(folder, "optimizer.learning_rate=1e-2"),
            "optimizer.learning_rate: a resumed run keeps 0.001, found 0.01; it decides what is trained: to change it "
            "anyway, add `may_change=True`",
        ),
        (
            load_state,
            "DIR/state.pt: expected the state of an interrupted run, found nothing; start a new run, or one "
            "with `initial_weights` of it",
        ),
        (
            lambda folder: read_intrinsics("1,2"),
            "intrinsics 1,2: expected 4 or 9 numbers, found 2; give fx,fy,cx,cy in pixels, or a text file with the 3x3 "
            "matrix of the camera",
        ),
        (
            lambda folder: find_weights("absent.safetensors"),
            "absent.safetensors: expected a file with weights, or the name of shipped ones (nyu_depth_w64, "
            "nyu_rgb_w64, nyu_seg2d_w128, nyu_seg2d_w64); found nothing",
        ),
        (
            start_from_another_width,
            "DIR/best.safetensors: weights of another network; to start from them set model.width=8",
        ),
        (lambda folder: choose_device("gpu"), "--device: expected cpu, cuda or cuda:0, found 'gpu'"),
        (
            skip_a_third_step,
            "step 3 (frames 0001, 0002): scene must be finite; 3 steps in a row were skipped; lower "
            "optimizer.learning_rate, or add optimizer.warmup_steps",
        ),
    ],
)
def test_errors(call: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        call(tmp_path)
    assert str(caught.value).replace(str(tmp_path), "DIR") == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "ammnet: expected a command, found 'trian'; did you mean `ammnet train`?"),
        (
            ["train", "--resum", "x"],
            "ammnet train: unrecognized arguments: --resum; did you mean --resume?",
        ),
        (
            ["train", "--resume", "absent"],
            "ammnet train: absent/config.yaml: expected the configuration of a run, found nothing; name a run's folder",
        ),
        (
            ["experiments", "table3"],
            "ammnet experiments: --data: expected the set to train on, found none (--only-table prints what is "
            "trained)",
        ),
    ],
)
def test_commands(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    assert (code, capsys.readouterr().err.splitlines()[-1]) == (2, expected)


def test_a_full_disk() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "x.npz")
    assert describe(error) == ("x.npz: No space left on device; free some space or choose another place", 2)
