"""From a step's rewards to advantages: reward shapes, advantages, bonuses and prompt weights."""
