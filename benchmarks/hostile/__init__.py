"""Hostile answers against the scorers: what gets out, what is stuck, how long it takes."""
