"""Templates: the page and the model card, and how the page looks."""
