"""Preparation: looks at a data set, or adds to it, before anything is trained."""
