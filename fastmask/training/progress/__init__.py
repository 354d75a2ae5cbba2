"""Progress: shows a training on a terminal, in a log or a notebook, and to trackers."""
