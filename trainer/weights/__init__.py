"""Packing, publishing, verifying and exporting weights."""
