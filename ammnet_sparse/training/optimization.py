"""Optimizer, schedule and loss scale of each of the two networks, and the average of the generator's weights."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ammnet_sparse.config import Config, ConfigError, OptimizerConfig
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.processes import num_processes, sum_gradients


class Optimization:
    """AdamW over the trainable parameters of a network, cosine per step, clipping, loss scaling in fp16.

    Weight decay spares biases and normalization.

    Args:
        extra_decay: as ``OptimizerConfig.extra_decay``.
    """

    def __init__(
        self,
        network: nn.Module,
        config: OptimizerConfig,
        *,
        learning_rate: float,
        num_steps: int,
        uses_scaling: bool,
        device: torch.device,
        extra_decay: float = 0.0,
    ) -> None:
        groups = param_groups_weight_decay(network, config.weight_decay)
        self.parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        if not self.parameters:
            raise ValueError(f"{type(network).__name__}: expected trainable parameters, found none")
        # Fused: few launches, and with loss scaling no wait for the device to check gradients for overflow.
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=max(num_steps - config.warmup_steps, 1),
            lr_min=config.final_learning_rate,
            warmup_t=config.warmup_steps,
            warmup_lr_init=config.final_learning_rate if config.warmup_steps else 0,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=uses_scaling)
        self.gradient_clip = config.gradient_clip
        self._weight_decay = config.weight_decay
        self._extra_decay = extra_decay * learning_rate
        self._move_schedule(0)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, scaled in fp16."""
        self.scaler.scale(loss).backward()

    def step(self) -> Tensor:
        """Clips, updates the parameters, moves the schedule on, clears the gradients; returns the gradient norm.

        Gradients are first summed over all processes. If the norm is not finite the parameters and the optimizer's
        moments are unchanged.
        """
        sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._step_if_finite(norm)
        self.optimizer.zero_grad(set_to_none=True)
        self._move_schedule(self.num_updates + 1)
        return norm

    def _move_schedule(self, num_updates: int) -> None:
        """Sets the learning rate, and the decay, which AdamW multiplies by it."""
        self.num_updates = num_updates
        self.scheduler.step_update(num_updates)
        for group in self.optimizer.param_groups:
            if self._extra_decay > 0 and group["weight_decay"] > 0:
                group["weight_decay"] = self._weight_decay + self._extra_decay / group["lr"]

    def _step_if_finite(self, norm: Tensor) -> None:
        """Updates the parameters unless a gradient is not finite; the host does not wait for the norm."""
        self.optimizer.found_inf = (~torch.isfinite(norm)).to(torch.float32)  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``: moments, loss scale and updates; the rest is that of the configuration.

        Raises:
            TypeError: values that no such state has.
        """
        moments, scaler, num_updates = state["optimizer"]["state"], state["scaler"], state["num_updates"]
        if type(num_updates) is not int or num_updates < 0:
            raise TypeError(f"num_updates: expected a count, found {num_updates!r}")
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = dict(zip([place for group in groups for place in group["params"]], self.parameters, strict=True))
        for place, found in moments.items():
            parameter = parameters.get(place)
            kinds = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            if parameter is None or set(found) != set(kinds):
                raise TypeError(f"optimizer: expected step and moments of {len(parameters)} parameters, found others")
            for name, kind in kinds.items():
                value = found[name]
                if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != kind.shape:  # type: ignore[union-attr]
                    raise TypeError(f"optimizer: expected {name} of parameter {place}, found another kind of value")
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for parameter, state in self.optimizer.state.items():  # AdamW wants them in the parameter's order of memory
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.empty_like(parameter, dtype=state[name].dtype).copy_(state[name])
        if scaler:  # empty if the run was in float32 until now
            if not all(type(value) in (int, float) and 0 <= value < math.inf for value in scaler.values()):
                raise TypeError(f"scaler: expected numbers, found {scaler!r}")
            self.scaler.load_state_dict(scaler)
        self._move_schedule(num_updates)


def build_optimizations(
    generator: nn.Module, discriminator: nn.Module, config: Config, *, num_steps: int, device: torch.device
) -> tuple[Optimization, Optimization | None]:
    """The optimizations of generator and discriminator; None if the discriminator is disabled.

    Args:
        num_steps: of the whole run, for the schedule.
        device: where the networks are.
    """
    optimizer, adversarial = config.optimizer, config.adversarial
    build = functools.partial(Optimization, config=optimizer, uses_scaling=config.training.uses_fp16, device=device)
    of_discriminator = None
    if adversarial.enabled:
        learning_rate = optimizer.discriminator_learning_rate or optimizer.learning_rate
        updates = math.ceil(num_steps / adversarial.discriminator_every)
        of_discriminator = build(discriminator, learning_rate=learning_rate, num_steps=updates)
    of_generator = build(
        generator, learning_rate=optimizer.learning_rate, num_steps=num_steps, extra_decay=optimizer.extra_decay
    )
    return of_generator, of_discriminator


def steps_per_epoch(config: Config, *, num_frames: int) -> int:
    """Updates per epoch for a number of training frames, over all processes.

    Raises:
        ConfigError: no update, or a warm-up that is longer than the run.
    """
    training, optimizer = config.training, config.optimizer
    frames = training.batch_size * training.accumulate * num_processes()
    steps = num_frames // frames
    if steps == 0:
        factors = "times training.accumulate" + (" and the number of processes" if num_processes() > 1 else "")
        raise ConfigError(
            f"training.batch_size: a step needs {frames} frames ({factors}), found {num_frames} training "
            "frames; lower it"
        )
    if optimizer.warmup_steps >= steps * training.epochs:
        raise ConfigError(
            f"optimizer.warmup_steps: expected fewer than the {steps * training.epochs} steps of the run, found "
            f"{optimizer.warmup_steps}"
        )
    return steps


class AveragedWeights:
    """A generator whose weights are the moving average of a trained one's.

    Parameters and running statistics of batch normalization are both averaged. The decay grows with the steps, as
    1 - steps^(-2/3), up to the given one, so that early weights do not dominate a short run's average.

    Attributes:
        network: the average, to be evaluated and saved; never trained.
    """

    def __init__(self, trained: AMMNet, *, decay: float) -> None:
        self._average = ModelEmaV3(trained, decay=decay, use_warmup=True)
        network = self._average.module
        assert isinstance(network, AMMNet)
        self.network = network

    def update(self, trained: AMMNet, *, step: int) -> None:
        """Updates the average after a step; ``step`` counts from 1, where the average equals the weights."""
        self._average.update(trained, step=step)

    def restart(self, trained: AMMNet) -> None:
        """Sets the average to the given weights."""
        self._average.set(trained)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the trained networks."""
        return self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores ``state_dict``. Raises RuntimeError for one of another network."""
        self.network.load_state_dict(state)
