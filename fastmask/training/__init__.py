"""Training: the learner, its callbacks, the fold loop."""
