"""HOW text is judged: pure functions. No torch, no ray, no vllm."""
