"""The learning rate of a step: linear warm-up, then cosine decay to `min_lr_ratio` times `lr`."""

from __future__ import annotations

import math

from configs.schema import LearnerConfig


def learning_rate(config: LearnerConfig, step: int, num_steps: int) -> float:
    """Learning rate of `step` (0-based): warm-up over `warmup_steps`, cosine over the rest of `num_steps`.

    Steps after `num_steps` have the lowest rate. All updates of a step share its rate.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, num_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
