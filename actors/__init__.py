"""WHO does the work in another process: plain classes around vLLM, DeepSpeed, scorers and the buffer."""
