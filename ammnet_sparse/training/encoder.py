"""Fine-tuning an image encoder on 2D segmentation, before the 3D network is trained on its frozen features.

A small backbone's ImageNet features distinguish indoor classes poorly, and the 3D network, which sees about 3,000
pixels per frame, trains the head slowly. Here backbone and head see every labeled pixel of ``data.label_2d``.
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import EpochDataset, build_loader
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.errors import abbreviated
from ammnet_sparse.files.writing import replacing
from ammnet_sparse.models.image_encoders import ImageEncoder
from ammnet_sparse.models.weights.checks import WeightsError

_WARMUP = 0.03
"""Fraction of the training over which the learning rate rises."""
_FINAL_RATE = 0.01
"""Learning rate at the end, as a fraction of the one given."""
_GRADIENT_CLIP = 10.0
_REDUCTION = "head.reduce"
"""Prefix of weights that belong to the 3D network and are not part of an encoder's file."""


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is fine-tuned. The training, and its schedule, end after ``epochs`` or after ``seconds``.

    Attributes:
        epochs: passes over the training frames; infinite: as many as fit in ``seconds``.
        seconds: wall time of the training without the validation, in whole steps, at least one.
        batch_size: images per step.
        crop: (rows, columns) of a random window of each batch that a step sees, or None for whole images.
        learning_rate: of the head, at its highest; cosine to a hundredth.
        backbone_rate: of the backbone, as a fraction of the head's.
        weight_decay: of AdamW; not on biases and normalization.
        balance: exponent of a class's inverse frequency in its weight: 0 weights pixels equally, 1 classes.
        label_smoothing: of the cross-entropy.
        ema_decay: of the moving average of the weights, which is scored and saved.
        mixed_precision: bfloat16 on a GPU.
        workers: processes that load frames, if these are not on the device.
        seed: of the order of frames.
    """

    epochs: float = 20
    seconds: float = math.inf
    batch_size: int = 16
    crop: tuple[int, int] | None = None
    learning_rate: float = 1e-3
    backbone_rate: float = 0.5
    weight_decay: float = 0.05
    balance: float = 0.5
    label_smoothing: float = 0.1
    ema_decay: float = 0.99
    mixed_precision: bool = True
    workers: int = 0
    seed: int = 8332


@dataclasses.dataclass(frozen=True)
class Scores2D:
    """Segmentation scores over the labeled pixels of a set; IoU is NaN for a class neither present nor predicted.

    Attributes:
        iou: [classes] float64 by class; empty, which no pixel is, included.
        accuracy: fraction of the labeled pixels with the right class.
        miou: mean of the defined IoUs of all classes but empty.
        class_names: names by class.
    """

    iou: Tensor
    accuracy: float
    miou: float
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, confusion: Tensor, class_names: tuple[str, ...] = NYU.class_names) -> "Scores2D":
        """From counts [classes, classes] by (true class, predicted class)."""
        counts = confusion.double().cpu()
        hits = counts.diagonal()
        iou = hits / (counts.sum(0) + counts.sum(1) - hits)
        accuracy, miou = float(hits.sum() / counts.sum()), float(iou[1:].nanmean())
        return cls(iou, accuracy=accuracy, miou=miou, class_names=class_names)

    def describe(self) -> str:
        """One line, in percent."""
        pairs = zip(self.class_names[1:], self.iou[1:].tolist(), strict=True)
        classes = ", ".join(f"{name} {100 * value:.0f}" for name, value in pairs)
        return f"2D mIoU {100 * self.miou:.1f} %, pixels {100 * self.accuracy:.1f} % ({classes})"


def train_encoder(
    encoder: ImageEncoder,
    training: EpochDataset,
    settings: EncoderSettings,
    *,
    device: torch.device,
    report: Callable[[str], None] | None = None,
) -> ImageEncoder:
    """Trains backbone and head on the dense 2D truth of a set; returns the moving average of the weights.

    Args:
        encoder: not frozen, on ``device``.
        training: augmented frames with images and ``label_2d``.
        report: called with a line of progress every 10 s.

    Raises:
        ValueError: frames without images or 2D truth, fewer than a batch, or an encoder that is frozen.
        FloatingPointError: the loss or the trained weights are not finite.
    """
    if encoder.is_frozen:
        raise ValueError("encoder: expected one to train, found a frozen one; build it with is_frozen=False")
    weights = class_weights(training, balance=settings.balance).to(device)
    optimizer = _optimizer(encoder, settings)
    average = ModelEmaV3(encoder, decay=settings.ema_decay, use_warmup=True)
    uses_bfloat16 = settings.mixed_precision and device.type == "cuda"
    encoder.to(memory_format=torch.channels_last)  # faster, on a CPU too
    crops = torch.Generator().manual_seed(settings.seed)
    total = settings.epochs * (len(training) // settings.batch_size)
    report = report or (lambda line: None)
    started = reported = time.monotonic()
    step, epoch, fraction = 0, 0, 0.0
    for epoch, batch in _batches(training, settings):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(fraction)
        image, truth = _window(*_images_and_truth(batch.to(device)), settings.crop, generator=crops)
        logits = _logits(encoder.train(), image, uses_bfloat16=uses_bfloat16)
        loss = F.cross_entropy(
            logits, truth, weight=weights, ignore_index=IGNORE_LABEL, label_smoothing=settings.label_smoothing
        )
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), _GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(encoder, step=step)
        elapsed = time.monotonic() - started
        fraction = max(step / total, elapsed / settings.seconds)
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"step {step}: the loss is {value}; lower the learning rate")
            report(f"step {step}, epoch {epoch}, {elapsed:.0f} s: loss {value:.3f}")
        if fraction >= 1:
            break
    report(f"{step} steps of {settings.batch_size} images, {epoch} epochs, {time.monotonic() - started:.0f} s")
    averaged = average.module
    if broken := _not_finite(averaged.state_dict()):  # of the last steps, too, after which no loss was looked at
        raise FloatingPointError(f"{broken}: must be finite after {step} steps; lower the learning rate")
    assert isinstance(averaged, ImageEncoder)
    return averaged.eval()


def _batches(training: EpochDataset, settings: EncoderSettings) -> Iterator[tuple[int, Batch]]:
    """Batches without end, each with its epoch, from 1."""
    for epoch in itertools.count():
        loader = build_loader(
            training,
            batch_size=settings.batch_size,
            shuffle_seed=settings.seed,
            epoch=epoch,
            workers=settings.workers,
            drop_last=True,
        )
        yield from ((epoch + 1, batch) for batch in loader)


def score_encoder(
    encoder: ImageEncoder,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    uses_bfloat16: bool = False,
    info: SetInfo = NYU,
) -> Scores2D:
    """Scores on frames of a set with 2D truth; the encoder stays in evaluation mode."""
    encoder.eval()
    num_classes = info.num_classes
    confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    with torch.inference_mode():
        for batch in batches:
            image, truth = _images_and_truth(batch.to(device))
            logits = _logits(encoder, image, uses_bfloat16=uses_bfloat16)
            is_labeled = truth != IGNORE_LABEL
            cells = truth[is_labeled] * num_classes + logits.argmax(dim=1)[is_labeled]
            confusion += cells.bincount(minlength=num_classes**2)
    return Scores2D.of(confusion.view(num_classes, num_classes), info.class_names)


def class_weights(training: EpochDataset, *, balance: float, num_frames: int = 100) -> Tensor:
    """[classes] float32: inverse frequency of each class to the power ``balance``, counted on the first frames.

    Scaled so that the mean over pixels is 1; classes without a pixel have weight 1.
    """
    counts = torch.zeros((), dtype=torch.float64)
    for index in range(min(num_frames, len(training))):
        batch = training[index]
        truth = batch.label_2d
        if truth is None:
            raise ValueError("training: expected frames with dense 2D truth (data.label_2d), found none")
        counts = counts + truth[truth != IGNORE_LABEL].long().bincount(minlength=batch.info.num_classes).cpu()
    if counts.sum() == 0:
        raise ValueError("training: expected labeled pixels in the dense 2D truth, found none")
    frequency = counts / counts.sum()
    weights = torch.where(counts > 0, frequency.clamp(min=1e-6) ** -balance, 0.0)
    weights = weights / (weights * frequency).sum()
    return torch.where(counts > 0, weights, 1.0).float()


def save_encoder(path: Path, encoder: ImageEncoder, *, metadata: dict[str, str], dtype: torch.dtype) -> None:
    """Writes backbone and head for ``model.image_encoder_weights``; tensors with several axes as ``dtype``.

    An existing file is replaced atomically.

    Raises:
        WeightsError: another ending than .safetensors, or a folder that cannot be written.
        FloatingPointError: weights that are not finite, or too large for ``dtype``; nothing is written.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: expected a name ending in .safetensors, found {path.suffix!r}")
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value).cpu().contiguous()
        for name, value in encoder.state_dict().items()
        if not name.startswith(_REDUCTION)
    }
    if broken := _not_finite(tensors):
        kind = str(dtype).removeprefix("torch.")
        raise FloatingPointError(f"{broken}: must be finite as {kind}; store float32, or lower the learning rate")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: cannot write the encoder ({error})") from error


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Names of the tensors with infinite values or NaN, shortened for a message; empty for none."""
    broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    return abbreviated(broken) if broken else ""


def _images_and_truth(batch: Batch) -> tuple[Tensor, Tensor]:
    """Images [B, 3, rows, columns] and classes [B, rows, columns] int64."""
    if batch.image is None or batch.label_2d is None:
        raise ValueError(
            f"frames {', '.join(batch.frame_ids)}: expected images and dense 2D truth (data.label_2d), found none"
        )
    return batch.image, batch.label_2d.long()


def _window(
    image: Tensor, truth: Tensor, size: tuple[int, int] | None, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same random window of all images of a batch and of their truth, at most the whole image."""
    if size is None:
        return image, truth
    first = [
        int(torch.randint(max(whole - part, 0) + 1, (), generator=generator))
        for whole, part in zip(image.shape[2:], size, strict=True)
    ]
    rows, columns = (slice(begin, begin + part) for begin, part in zip(first, size, strict=True))
    return image[..., rows, columns], truth[..., rows, columns]


def _logits(encoder: ImageEncoder, image: Tensor, *, uses_bfloat16: bool) -> Tensor:
    """[B, 12, rows, columns] float32, at the size of the images."""
    precision = torch.autocast("cuda", torch.bfloat16) if uses_bfloat16 else contextlib.nullcontext()
    with precision:
        logits = encoder(image.contiguous(memory_format=torch.channels_last)).class_logits
    return F.interpolate(logits.float(), size=image.shape[2:], mode="bilinear", align_corners=True)


def _optimizer(encoder: ImageEncoder, settings: EncoderSettings) -> torch.optim.AdamW:
    groups = []
    for part, scale in ((encoder.backbone, settings.backbone_rate), (encoder.head, 1.0)):
        for group in param_groups_weight_decay(part, settings.weight_decay):
            groups.append({**group, "peak": settings.learning_rate * scale})
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _schedule(fraction: float) -> float:
    """Factor of the learning rate at a fraction of the training: linear warm-up, then cosine."""
    if fraction < _WARMUP:
        return (fraction + 1e-3) / (_WARMUP + 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * (fraction - _WARMUP) / (1 - _WARMUP)))
    return _FINAL_RATE + (1 - _FINAL_RATE) * cosine
