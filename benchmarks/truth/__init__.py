"""Worlds of known features, planted behaviours, and who is tried on them: what `ground_truth.py` is made of."""
