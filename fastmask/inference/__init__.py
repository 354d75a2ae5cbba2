"""Inference: from a run to probabilities and a submission."""
