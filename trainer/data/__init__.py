"""Prompts and demonstrations: reading datasets and tokenizing them."""
