"""What to switch on if memory is exhausted, and how much it saves."""

from ammnet_sparse.config import Config

_KEPT_MIB = {"off": 985.0, "elementwise": 517.0, "blocks": 233.0, "full": 112.0}
"""Kept for the backward pass of the generator by ``training.recompute``, per frame of NYU at width 256 in float32, as
the benchmark bench_model measures it (docs/results.md); about proportional to the width."""
_WIDTH = 256


def memory_advice(config: Config) -> str:
    """Keys to set, those that do not change the result first, with the share of the memory that each leaves."""
    training, model = config.training, config.model
    scale = model.width / _WIDTH * (0.5 if training.mixed_precision else 1.0)

    def kept(level: str, batch_size: int) -> str:
        return f"about {_KEPT_MIB[level] * scale * batch_size:.0f} MiB"

    lines = [
        f"A step keeps {kept(training.recompute, training.batch_size)} for its backward pass, beside weights and "
        "working memory. To need less, in this order:"
    ]
    levels = list(_KEPT_MIB)
    for level in levels[levels.index(training.recompute) + 1 :]:
        lines.append(f"  training.recompute={level}: {kept(level, training.batch_size)}")
    least = levels[-1]
    if training.batch_size % 2 == 0:
        half = training.batch_size // 2
        lines.append(
            f"  training.batch_size={half} training.accumulate={2 * training.accumulate}: "
            f"{kept(least, half)} with training.recompute={least} (normalization then sees {half} frames at a time)"
        )
    elif training.batch_size > 1:
        lines.append("  training.batch_size=1 with a larger training.accumulate")
    if not training.mixed_precision:
        lines.append("  training.mixed_precision=true, on a GPU: half of it")
    if config.data.on_device:
        lines.append("  data.on_device=false: the frames stay in the memory of the machine")
    lines.append("  a smaller model.width, for a new run")
    return "\n".join(lines)
