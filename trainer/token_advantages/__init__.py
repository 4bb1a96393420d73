"""Transforms of the advantage per token, before the loss."""
