"""From a step's rewards to advantages: reward shaping, advantage estimators, bonuses and prompt weights."""
