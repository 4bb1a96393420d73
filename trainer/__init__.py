"""Training: roles, the loop, rollouts, advantages, losses, evaluation. Imports no ray, vllm or deepspeed."""
