"""Report: a run at a glance, and its mistakes photo by photo."""
