"""Data: from a folder or a CSV to fastai DataLoaders."""
