"""The configuration: what is read, what is refused, and how messages name it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from ammnet_sparse.config import (
    Config,
    ConfigError,
    config_from_dict,
    describe_keys,
    flat_plain,
    flat_values,
    keys_without_effect,
    load_config,
    save_config,
)

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_loads(path: Path) -> None:
    load_config(path)


def test_defaults_are_those_of_the_paper() -> None:
    config = load_config()
    assert config == Config()
    optimizer, training, loss = config.optimizer, config.training, config.loss
    assert (optimizer.learning_rate, optimizer.final_learning_rate, optimizer.weight_decay) == (1e-3, 1e-7, 0.05)
    assert (optimizer.gradient_clip, training.seed, training.batch_size, training.epochs) == (10.0, 8332, 4, 150)
    assert (loss.label_smoothing, loss.weight_2d, loss.weight_adversarial) == (0.2, 0.25, 0.005)
    assert config.adversarial.erase_probability == config.adversarial.shuffle_probability == (0.1, 0.9)


def test_overrides_win_over_the_file_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  epochs: 3\n  batch_size: 2\nmodel:\n  width: 16\n")
    overrides = ["training.epochs=4", "training.epochs=5", "optimizer.learning_rate=1e-3", "data.root=~/nyu"]
    config = load_config(path, [*overrides, "adversarial.erase_probability=[0.2, 0.2]", "model.modulation2=false"])
    assert (config.training.epochs, config.training.batch_size, config.model.width) == (5, 2, 16)
    assert config.optimizer.learning_rate == 1e-3
    assert config.data.root == Path.home() / "nyu"
    assert config.adversarial.erase_probability == (0.2, 0.2)
    assert not config.model.modulation2
    assert load_config(None, ["data.root="]).data.root is None


def test_sections_without_keys_have_their_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  # epochs: 3\ndata:\n  synthetic:\n")
    assert load_config(path) == Config()
    assert load_config(path, ["training.epochs=3", "data.synthetic.seed=1"]).training.epochs == 3
    assert load_config(written(tmp_path, "")) == Config()


def test_saved_configuration_reads_back_to_the_same(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "data.root=some/folder",
            "optimizer.discriminator_learning_rate=2e-4",
            "model.stem_widths=[2, 4]",
            "model.image_encoder_weights=mit_b2.pth",
        ],
    )
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config
    assert flat_values(config).keys() == {key.name for key in describe_keys()}
    assert flat_values(load_config(path)) == flat_values(config)
    values = yaml.safe_load(path.read_text())
    assert values["training"]["epochs"] == 150 and values["model"]["stem_widths"] == [2, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  epoch: 3\n", "training.epoch: .*training.epochs"),
        ("epochs: 3\n", "epochs: .*training.epochs"),
        ("training:\n  learning_rate: 1\n", "training.learning_rate: .*optimizer.learning_rate"),
        ("training:\n  epochs: many\n", "training.epochs"),
        ("training:\n  epochs: 1.5\n", "training.epochs"),
        ("training:\n  epochs: yes\n", "training.epochs"),
        ("training:\n  epochs:\n", "training.epochs"),
        ("training: 3\n", "training"),
        ("optimizer:\n  learning_rate: .nan\n", "optimizer.learning_rate"),
        ("optimizer:\n  learning_rate: 1.0e-9\n", "optimizer.learning_rate"),
        ("loss:\n  label_smoothing: 1.1\n", "loss.label_smoothing"),
        ("adversarial:\n  erase_probability: [0.5, 0.1]\n", "adversarial.erase_probability"),
        ("adversarial:\n  erase_probability: [0.5, 2]\n", r"adversarial.erase_probability.1"),
        ("loss:\n  class_weights: [1, 2]\n", "loss.class_weights"),
        ("loss:\n  class_weights: [1, 0]\n", r"loss.class_weights.1"),
        ("training:\n  ema_decay: 1\n", "training.ema_decay"),
        ("model:\n  width: 30\n", "model.width"),
        ("model:\n  grid_shape: [60, 36, 61]\n", "model.grid_shape"),
        ("model:\n  grid_shape: [60, 36]\n", "model.grid_shape"),
        ("model:\n  fusion: sum\n", "model.fusion"),
        ("data:\n  root: 2024\n", "data.root"),
        ("data:\n  synthetic:\n    frames: 5\n", "data.synthetic.validation_frames"),
        ("data:\n  synthetic:\n    frame: 5\n", "data.synthetic.frame"),
        ("training:\n  epochs: 3\nmodel:\ntraining:\n  seed: 1\n", "'training'"),
        ("training:\n  epochs: 3\n  epochs: 4\n", "'epochs'"),
        ("- training\n", "list"),
        ("training: [\n", "YAML"),
        ("root: !!python/object/apply:os.getcwd []\n", "YAML"),
    ],
)
def test_errors_name_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}:")


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, "modle:\n  width: 3\ntraining:\n  epochs: -1\n  batchsize: 3\n"))
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for part in ("modle: unknown key", "training.epochs:", "training.batchsize: unknown key"):
        assert any(part in line for line in lines)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load_config(path)
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ConfigError, match=str(path)):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "'training.epochs'"),
        ("=3", "=3"),
        ("training.epochs=[", "training.epochs"),
        ("training={epochs: 3}", "training"),
        ("training.epochs.x=3", "training.epochs: "),
        ("model.depth=3", "model.depth"),
    ],
)
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_every_key_is_described() -> None:
    described = {key.name: (key.kind, key.default, key.meaning) for key in describe_keys()}
    assert all(kind and meaning for kind, _, meaning in described.values())
    assert described["training.epochs"] == ("int >= 1", 150, "passes over the training frames")
    kinds = {key: kind for key, (kind, *_) in described.items()}
    assert kinds["data.root"] == "path or empty"
    assert kinds["model.grid_shape"] == "[int, int, int]"
    assert kinds["model.sites"] == "sparse | dense"
    assert kinds["training.deterministic"] == "true or false"
    assert kinds["loss.label_smoothing"] == "float >= 0.0, <= 1.0"


def test_configuration_cannot_be_changed_and_source_is_named() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3  # type: ignore[misc]
    values: dict[str, Any] = {"training": {"epochs": "x"}}
    with pytest.raises(ConfigError, match="^metadata:\n  training.epochs"):
        config_from_dict(values, source="metadata")


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghijkl")
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        f"model:\n  grid_shape: &x\n    - [{', '.join(['1'] * 20_000)}]\n",
        "a: &a [*a]\n",
        "a: " + "[" * 5000 + "]" * 5000,
        "a: " + "{a: " * 60 + "1" + "}" * 60,
        "training:\n  epochs: !!bool abc\n",
        "training:\n  epochs: 2001-99-99\n",
        "training:\n  epochs: !!int many\n",
        "training:\n  epochs: " + "9" * 5000 + "\n",
        "training: !!python/object:os.system {}\n",
        "data:\n  root: ~nobody_of_that_name/data\n",
        'data:\n  root: "a\\0b"\n',
        "training:\n  seed: 0x" + "f" * 5000 + "\n",
        "".join(f"key_{number}: 1\n" for number in range(3000)),
    ],
)
def test_hostile_files_end_in_a_short_message(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        load_config(path)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.root=/data/nyu #2", Path("/data/nyu #2")),
        ("data.root=#2", Path("#2")),
        ("data.root=/data/nyu: the set", Path("/data/nyu: the set")),
        ("data.root=[old] data", Path("[old] data")),
        ("data.root=2024", Path("2024")),
        ("data.root=2001-99-99", Path("2001-99-99")),
        ("data.root=true", Path("true")),
        ("data.root='/data/nyu #2'", Path("/data/nyu #2")),
        ('data.root="/data/nyu"', Path("/data/nyu")),
        ("data.root=", None),
        ("data.root=null", None),
    ],
)
def test_paths_on_the_command_line_are_taken_as_they_stand(override: str, expected: Path | None) -> None:
    assert load_config(None, [override]).data.root == expected


def test_lists_on_the_command_line_are_text() -> None:
    assert load_config(None, ["data.split=0042"]).data.split == "0042"


@pytest.mark.parametrize(
    "override",
    [
        "training.epochs=5 #fast",
        "training.epochs=2001-99-99",
        "training.epochs=!!bool abc",
        "training.epochs=" + "[" * 3000,
        "training.epochs=" + "x" * 100_000,
        "data.root=~nobody_of_that_name",
        ".".join("a" * 3000) + "=1",
    ],
)
def test_hostile_overrides_end_in_a_short_message(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert len(str(caught.value)) < 2000


def test_keys_without_effect_are_named_with_the_reason() -> None:
    given = {
        "model": {"image_encoder": "seg2d", "head_width": 64, "sites": "dense", "encoder_band": True},
        "data": {"root": "set", "label_2d": "truth", "augment_2d": True, "synthetic": {"seed": 3}},
        "adversarial": {"enabled": False, "label_noise": 0.1},
        "optimizer": {"discriminator_learning_rate": 1e-3, "learning_rate": 2e-3},
    }
    keys = flat_plain(given).keys()
    config = config_from_dict(given, source="test")
    found = keys_without_effect(config, keys)
    assert found == {
        "model.head_width": "with model.image_encoder=seg2d no color images are read",
        "data.label_2d": "with model.image_encoder=seg2d no color images are read",
        "model.encoder_band": "with model.sites=dense every voxel is a site",
        "data.synthetic.seed": "data.root names a set, so no rooms are generated",
        "adversarial.label_noise": "adversarial.enabled is false",
        "optimizer.discriminator_learning_rate": "adversarial.enabled is false",
    }
    used = {"model": {"image_encoder": "efficientnet_lite2", "head_width": 64}, "adversarial": {"label_noise": 0.1}}
    assert not keys_without_effect(config_from_dict(used, source="test"), flat_plain(used).keys())
