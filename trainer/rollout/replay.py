"""Which groups of earlier steps a step trains on again: a pure function of the seed and the step.

Called by the loop before it takes a step's groups; the buffer reads the picks from the committed steps and
turns them into rows of origin replay (`rollouts.schema.as_replay`).
"""

from __future__ import annotations

import numpy as np

from configs.schema import RunConfig
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.seeds import derive_seed
from trainer.step_records import Pick


def choose(config: RunConfig, step: int) -> tuple[Pick, ...]:
    """`replay.groups_per_step` distinct groups for step `step` (from 0), in order of submission.

    Drawn uniformly from the groups that the last `replay.max_age` committed steps were trained on, fewer if
    there are fewer. The first G = `rollout.groups_per_step` submissions that a step
    owns are those, so nothing is read and a resumed run draws the same.
    """
    num_groups = config.rollout.groups_per_step
    oldest = max(0, step - config.replay.max_age) * num_groups
    num_candidates = step * num_groups - oldest
    num_picks = min(config.replay.groups_per_step, num_candidates)
    if num_picks == 0:
        return ()
    rng = np.random.default_rng(derive_seed(config.seed, "replay", step))
    drawn = rng.choice(num_candidates, size=num_picks, replace=False)
    found = [divmod(oldest + int(number), num_groups) for number in sorted(drawn)]
    stride = submissions_per_step(config)
    return tuple(Pick(step=of + 1, submission_index=of * stride + place) for of, place in found)
