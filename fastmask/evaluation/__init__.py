"""Evaluation: comparisons of results, submissions and their ledger, shifts, label errors."""
