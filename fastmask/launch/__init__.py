"""Launch: folds on other machines."""
