"""Inference: the probabilities and the submission that a run predicts."""
