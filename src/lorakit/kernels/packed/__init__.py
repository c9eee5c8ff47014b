"""Frozen weights in fewer bits: how each packing is read, and what multiplies by it."""
