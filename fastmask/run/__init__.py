"""Run: the run directory, which training writes and all later steps read."""
