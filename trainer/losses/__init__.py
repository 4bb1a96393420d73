"""Losses per token, their batch statistics, KL terms and the normalisation of their sum."""
