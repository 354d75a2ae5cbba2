"""Run: the run directory, what a training leaves and everything after it reads."""
