"""Transforms of the advantage, token by token, before the loss."""
