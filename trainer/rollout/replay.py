"""Which groups of earlier steps a step trains on again. Depends only on the seed and the step.

Used by the loop before it takes a step's groups. The buffer reads the picked groups from the committed steps
and turns them into rows of origin replay (`rollouts.schema.as_replay`).
"""

from __future__ import annotations

import numpy as np

from configs.schema import RunConfig
from trainer.rollout.dynamic_sampling import submissions_per_step
from trainer.seeds import derive_seed
from trainer.step_records import Pick


def choose(config: RunConfig, step: int) -> tuple[Pick, ...]:
    """`replay.groups_per_step` distinct groups for step `step` (from 0), in order of submission.

    Drawn uniformly from the first `rollout.groups_per_step` groups of each of the last `replay.max_age`
    committed steps; fewer if there are not enough. No file is read, so a resumed run draws the same groups.
    """
    num_groups = config.rollout.groups_per_step
    oldest = max(0, step - config.replay.max_age) * num_groups
    num_candidates = step * num_groups - oldest
    num_picks = min(config.replay.groups_per_step, num_candidates)
    if num_picks == 0:
        return ()
    rng = np.random.default_rng(derive_seed(config.seed, "replay", step))
    drawn = rng.choice(num_candidates, size=num_picks, replace=False)
    picked = [divmod(oldest + int(number), num_groups) for number in sorted(drawn)]
    stride = submissions_per_step(config)
    return tuple(Pick(step=of + 1, submission_index=of * stride + place) for of, place in picked)
