"""Progress: what a training shows while it goes on, and to whom."""
