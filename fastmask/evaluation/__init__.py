"""Evaluation: figures about results: comparisons, submissions, label errors."""
