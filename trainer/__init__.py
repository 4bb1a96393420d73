"""HOW it learns: roles, the loop, the producer, advantages, losses, evaluation. No ray, vllm or deepspeed."""
