"""Sparse linear algebra and exact selection. Nothing here knows what a crosscoder is."""
