"""Export: a run where there is no torch."""
