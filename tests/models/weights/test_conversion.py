"""Conversion of published dense checkpoints: no weight is lost, and wrong ones are refused."""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from bench.dense_reference.network import DenseAMMNet, DenseDiscriminator
from torch import Tensor, nn

from ammnet_sparse.cli import convert
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.conversion import (
    convert_dense_state_dict,
    publish_dense_state_dict,
    published_name,
)
from ammnet_sparse.models.weights.files import load_into, read_weights, save_weights, set_info_in
from ammnet_sparse.models.weights.loading import join_states, split_state

REPOSITORY = Path(__file__).resolve().parents[3]
GRID = (12, 12, 12)
IMAGE = (32, 64)
CONFIG = ModelConfig(
    width=8,
    grid_shape=GRID,
    num_classes=5,
    stem_widths=(2, 4),
    image_encoder="segformer_b2",
    freeze_image_encoder=False,
    discriminator_width=12,
    sites="dense",
)

KNOWN_NAMES = {
    "tsdf_encoder.stem.norm2.running_var": "TSDFNet.oper1.4.running_var",
    "tsdf_encoder.stage_quarter.0.shortcut.conv.weight": "TSDFNet.completion_layer2.0.downsample.1.weight",
    "tsdf_encoder.up_full.conv.bias": "TSDFNet.enc_tsdf.1.0.bias",
    "decoder.stage_half.3.norm5.bias": "complete.semantic_layer1.3.bn5.bias",
    "decoder.tsdf_down.1.down3.norm.weight": "complete.DownScale.1.downsample3.2.weight",
    "decoder.tsdf_up.norm.weight": "complete.UpScale.1.weight",
    "decoder.modulation3.bias.weight": "complete.pre_layer_R32.weight",
    "discriminator.blocks.2.down4.conv.weight": "disc.layer3.downsample4.1.weight",
    "discriminator.score.bias": "disc.logit.bias",
    "image_encoder.head.projection4.weight": "head.linear_c4.proj.weight",
    "image_encoder.backbone.stages.2.blocks.5.mlp.dwconv.bias": "encoder.block3.5.mlp.dwconv.dwconv.bias",
}


class Dense(NamedTuple):
    """The published network: generator and discriminator."""

    generator: DenseAMMNet
    discriminator: nn.Module

    def state_dict(self) -> dict[str, Tensor]:
        return join_states(self.generator.state_dict(), self.discriminator.state_dict())


def build_dense(config: ModelConfig) -> Dense:
    return Dense(DenseAMMNet(config).eval(), DenseDiscriminator(config).eval())


@pytest.fixture(scope="module")
def network() -> Dense:
    """A small dense network whose statistics are not the initial ones."""
    torch.manual_seed(5)
    network = build_dense(CONFIG)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.copy_(torch.rand_like(value) + 0.5)
    return network


@pytest.fixture(scope="module")
def published(network: Dense) -> dict[str, Tensor]:
    """Its weights as the authors would have saved them, with the poolings that blocks of stride 1 never use."""
    state = {published_name(name): value for name, value in network.state_dict().items()}
    for name in list(state):
        if not name.endswith(".conv2.weight") or name.replace("conv2", "downsample.1") in state:
            continue
        block, planes = name.removesuffix(".conv2.weight"), state[name].shape[0]
        for index in (2, 3, 4):
            state[f"{block}.downsample{index}.1.weight"] = torch.zeros(planes, planes, 1, 1, 1)
            for kind in ("weight", "bias", "running_mean", "running_var"):
                state[f"{block}.downsample{index}.2.{kind}"] = torch.zeros(planes)
            state[f"{block}.downsample{index}.2.num_batches_tracked"] = torch.tensor(0)
    return state


def without(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def test_published_names_of_samples() -> None:
    assert {name: published_name(name) for name in KNOWN_NAMES} == KNOWN_NAMES
    with pytest.raises(WeightsError, match="label_map_stem.conv1.weight"):
        published_name("label_map_stem.conv1.weight")


def test_the_published_list_of_names_and_shapes_converts_completely() -> None:
    path = REPOSITORY.parent / "shared" / "paper" / "dense_ammnet_state_dict.txt"
    if not path.is_file():
        pytest.skip(f"needs the published names and shapes, and {path} is absent")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    state = {}
    for name, shape in lines:
        sizes = [int(size) for size in shape.strip("() ").split(",") if size.strip()]
        state[name] = torch.rand(sizes) if not name.endswith("num_batches_tracked") else torch.tensor(7)
    conversion = convert_dense_state_dict(state)
    config = conversion.model_config
    assert (config.width, config.num_classes, config.stem_widths, config.discriminator_width) == (256, 12, (3, 64), 64)
    assert conversion.missing_parts == ()
    assert len(conversion.weights) + len(conversion.unused) == len(state)
    # 13 blocks of stride 1, each with three poolings of six entries.
    assert len(conversion.unused) == 13 * 3 * 6
    generator, _ = split_state(conversion.weights)
    with torch.device("meta"):
        network = DenseAMMNet(config)
    network.load_state_dict(generator, strict=True, assign=True)
    assert torch.equal(network.decoder.modulation1.scale.weight, state["complete.pre_layer_R11.weight"])


def test_converted_weights_give_the_same_logits(network: Dense, published: dict[str, Tensor]) -> None:
    conversion = convert_dense_state_dict(published, grid_shape=GRID)
    assert conversion.model_config == CONFIG.model_copy(update={"freeze_image_encoder": True})
    assert conversion.missing_parts == ()
    converted = {published_name(name) for name in network.state_dict()}
    assert conversion.unused.keys() == published.keys() - converted
    with torch.device("meta"):
        loaded = build_dense(CONFIG)
    for part, state in zip(loaded, split_state(conversion.weights), strict=True):
        part.load_state_dict(state, strict=True, assign=True)
    num_voxels = GRID[0] * GRID[1] * GRID[2]
    batch = Batch(
        tsdf=torch.rand(1, 1, *GRID),
        mapping=torch.randint(-1, IMAGE[0] * IMAGE[1], (1, num_voxels)),
        label_weight=torch.ones(1, num_voxels, dtype=torch.bool),
        image=torch.randn(1, 3, *IMAGE),
    )
    with torch.no_grad():
        expected, found = network.generator(batch), loaded.generator(batch)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.logits_2d, expected.logits_2d)
        assert torch.equal(loaded.discriminator(found.logits), network.discriminator(found.logits))


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (None, "module."),
        ("model", "module.module."),
        ("state_dict", "model."),
        ("model_state_dict", ""),
        ("net", "module._orig_mod."),
    ],
)
def test_wrapping_and_prefixes_do_not_matter(published: dict[str, Tensor], key: str | None, prefix: str) -> None:
    plain = without(published, "encoder.")
    state = {f"{prefix}{name}": value for name, value in plain.items()}
    checkpoint = state if key is None else {key: state, "epoch": 7}
    conversion = convert_dense_state_dict(checkpoint, grid_shape=GRID)
    expected = convert_dense_state_dict(plain, grid_shape=GRID)
    assert conversion.weights.keys() == expected.weights.keys()
    assert all(torch.equal(value, expected.weights[name]) for name, value in conversion.weights.items())
    assert conversion.unused == expected.unused


def test_parts_may_be_absent(published: dict[str, Tensor]) -> None:
    conversion = convert_dense_state_dict(without(published, "encoder."), grid_shape=GRID)
    assert conversion.missing_parts == ("image_encoder.backbone",)
    assert "image_encoder.head.fuse.weight" in conversion.weights
    conversion = convert_dense_state_dict(without(published, "encoder.", "head.", "disc."), grid_shape=GRID)
    assert conversion.missing_parts == ("image_encoder.backbone", "image_encoder.head", "discriminator")
    assert {name.split(".")[0] for name in conversion.weights} == {"tsdf_encoder", "decoder"}
    rest = DenseAMMNet(conversion.model_config)
    load_into(rest, conversion.weights, source="test", may_lack=conversion.missing_parts)
    assert torch.equal(rest.decoder.classifier.bias, published["complete.classify_semantic.2.1.bias"])


def test_half_precision_becomes_float32(published: dict[str, Tensor]) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in published.items()}
    conversion = convert_dense_state_dict(half, grid_shape=GRID)
    assert {value.dtype for value in conversion.weights.values()} == {torch.float32, torch.int64}


def test_wrong_weights_are_named(published: dict[str, Tensor]) -> None:
    name = "complete.semantic_layer1.0.conv2.weight"
    unused = "complete.semantic_layer1.1.downsample2.1.weight"
    statistics = "TSDFNet.oper1.1.running_var"
    wrong = published | {
        name: torch.zeros(2, 2, 3, 1, 1),
        unused: torch.zeros(3),
        "complete.extra": torch.zeros(1),
        statistics: published[statistics] * float("nan"),
        "TSDFNet.oper1.1.bias": torch.zeros(2, dtype=torch.int64),
    }
    del wrong["TSDFNet.oper1.0.weight"], wrong["head.linear_pred.bias"]
    with pytest.raises(WeightsError, match="TSDFNet.oper1.0.weight"):
        convert_dense_state_dict(wrong, grid_shape=GRID)
    wrong["TSDFNet.oper1.0.weight"] = published["TSDFNet.oper1.0.weight"]
    with pytest.raises(WeightsError) as caught:
        convert_dense_state_dict(wrong, grid_shape=GRID)
    for named in ("complete.extra", "head.linear_pred.bias", name, unused, "TSDFNet.oper1.1.bias", statistics):
        assert named in str(caught.value)


def test_anything_but_a_state_dict_is_refused(published: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match="epoch"):
        convert_dense_state_dict({**published, "epoch": 3}, grid_shape=GRID)
    with pytest.raises(WeightsError, match="empty"):
        convert_dense_state_dict({"model": {}})
    name = "complete.pre_layer_R11.bias"
    with pytest.raises(WeightsError, match=name):
        convert_dense_state_dict({**published, f"module.{name}": published[name]})
    classifier = "complete.classify_semantic.2.1.weight"
    with pytest.raises(WeightsError, match="multiple of 4"):
        convert_dense_state_dict({**published, classifier: torch.zeros(5, 7, 1, 1, 1)}, grid_shape=GRID)
    with pytest.raises(WeightsError, match="disc.linear.weight"):
        convert_dense_state_dict(published)


def test_the_command_writes_a_file_that_loads(
    published: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, backbone, output = tmp_path / "dense.pth", tmp_path / "mit_b2.pth", tmp_path / "out.safetensors"
    torch.save({"model": without(published, "encoder.", "disc.")}, checkpoint)
    encoder = {name: value for name, value in published.items() if name.startswith("encoder.")}
    torch.save({name.removeprefix("encoder."): value for name, value in encoder.items()}, backbone)
    grid = ["--grid-shape", *map(str, GRID)]
    assert convert.main([str(checkpoint), str(output), *grid, "--image-encoder-weights", str(backbone)]) == 0
    report = capsys.readouterr().out
    assert "discriminator" in report and "complete.semantic_layer1.1.downsample2.1.weight" in report
    weights, config, metadata = read_weights(output)
    assert metadata == {"converted_from": "dense.pth", "missing_parts": "discriminator"}
    loaded = DenseAMMNet(config)
    load_into(loaded, weights, source=output, may_lack=metadata["missing_parts"].split(","))
    assert torch.equal(loaded.image_encoder.backbone.patch_embed.proj.bias, encoder["encoder.patch_embed1.proj.bias"])


def test_the_command_names_the_classes_of_the_checkpoint(
    published: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, output, file = tmp_path / "dense.pth", tmp_path / "out.safetensors", tmp_path / "classes.yaml"
    torch.save(published, checkpoint)
    command = [str(checkpoint), "--out", str(output), "--grid-shape", *map(str, GRID)]
    assert convert.main(command) == 0 and "--classes" in capsys.readouterr().err
    _, config, metadata = read_weights(output)
    with pytest.raises(WeightsError, match="--classes"):
        set_info_in(metadata, config)
    colors = {f"class {label}": [label, 0, 0] for label in range(config.num_classes)}
    file.write_text(json.dumps({"classes": colors}))
    assert convert.main([*command, "--classes", str(file)]) == 0
    assert list(set_info_in(read_weights(output)[2], config).classes) == list(colors)
    file.write_text(json.dumps({"classes": {**colors, "more": [0, 1, 0]}}))
    assert convert.main([*command, "--classes", str(file)]) == 2


def test_the_command_names_files_that_it_cannot_convert(
    published: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out.safetensors"
    pickled = tmp_path / "pickled.pth"
    torch.save({"model": {"weight": torch.zeros(1)}, "args": argparse.Namespace()}, pickled)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, foreign)
    complete = tmp_path / "complete.pth"
    torch.save(published, complete)
    grid = ["--grid-shape", *map(str, GRID)]
    for arguments, name in (
        ([pickled, output], "pickled.pth"),
        ([tmp_path / "none.pth", output], "none.pth"),
        ([foreign, output], "foreign.safetensors: complete.classify_semantic.2.1.weight"),
        ([complete, tmp_path / "out.pth", *grid], "out.pth"),
        ([complete, output, *grid, "--image-encoder-weights", complete], "complete.pth"),
    ):
        assert convert.main([str(argument) for argument in arguments]) == 2
        assert name in capsys.readouterr().err
    assert not output.exists()


STRANGE_TENSORS = {
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "sparse": lambda value: value.to_sparse(),
    "meta": lambda value: value.to("meta"),
    "nested": lambda value: torch.nested.nested_tensor([value, value]),
    "complex": lambda value: value.to(torch.complex64),
    "too large for float32": lambda value: value.double().fill_(1e300),
    "stride 0": lambda value: torch.zeros(1).expand(2**40),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE_TENSORS)
def test_the_command_refuses_strange_tensors(
    kind: str, published: dict[str, Tensor], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name = "TSDFNet.oper1.1.bias"
    checkpoint, output = tmp_path / "strange.pth", tmp_path / "out.safetensors"
    torch.save({**published, name: STRANGE_TENSORS[kind](published[name])}, checkpoint)
    assert convert.main([str(checkpoint), "--out", str(output), "--grid-shape", *map(str, GRID)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ammnet convert: {checkpoint}: ") and "Traceback" not in error
    assert name in error or kind in ("meta",)
    assert not output.exists()


def test_weights_go_back_under_the_published_names(network: Dense, published: dict[str, Tensor]) -> None:
    ours = network.state_dict()
    back = publish_dense_state_dict(ours, CONFIG)
    assert back.keys() == published.keys()
    again = convert_dense_state_dict(back, grid_shape=GRID).weights
    assert again.keys() == ours.keys() and all(torch.equal(again[name], ours[name]) for name in ours)
    backbone = {name: value for name, value in ours.items() if not name.startswith("image_encoder.backbone.")}
    assert not any(name.startswith("encoder.") for name in publish_dense_state_dict(backbone, CONFIG))


@pytest.mark.parametrize(("key", "value"), [("sites", "sparse"), ("image_encoder", "seg2d"), ("modulation2", False)])
def test_other_networks_are_not_converted_to_the_original(network: DenseAMMNet, key: str, value: object) -> None:
    with pytest.raises(WeightsError, match=f"model.{key}"):
        publish_dense_state_dict(network.state_dict(), CONFIG.model_copy(update={key: value}))


def test_damaged_weights_are_not_converted_to_the_original(network: DenseAMMNet) -> None:
    ours = dict(network.state_dict())
    del ours["decoder.classifier.bias"]
    ours["decoder.extra"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"complete\.classify.*decoder\.extra"):
        publish_dense_state_dict(ours, CONFIG)


def test_the_command_writes_the_original_names(
    network: DenseAMMNet, published: dict[str, Tensor], tmp_path: Path
) -> None:
    ours, out = tmp_path / "ours.safetensors", tmp_path / "ammnet.pth"
    save_weights(ours, network.state_dict(), model_config=CONFIG)
    assert convert.main(["--to-dense", str(ours), "--out", str(out)]) == 0
    state = torch.load(out, weights_only=True)["model"]
    assert state.keys() == published.keys()
    assert convert.main(["--to-dense", str(ours), "--out", str(tmp_path / "ammnet.safetensors")]) == 2
