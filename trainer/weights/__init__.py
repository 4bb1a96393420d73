"""Weights on their way to the engines and to disk: packing, publishing, verifying, exporting."""
