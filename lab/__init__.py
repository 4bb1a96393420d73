"""Controlled experiments: a synthetic corpus, from-scratch pretraining, small bases."""
