"""Report: the HTML page, plots and model card of a run."""
