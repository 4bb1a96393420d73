"""The model's side of a batch: the causal LM, the plan of microbatches, rows as tensors."""
