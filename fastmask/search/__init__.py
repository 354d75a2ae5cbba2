"""Search: many runs, to find settings or a body."""
