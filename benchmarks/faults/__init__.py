"""Faults on purpose, in real runs: `python -m benchmarks.faults.<name> --out FOLDER`."""
