"""App: the page of a run, and its server."""
