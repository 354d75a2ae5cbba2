"""Recipes: the YAML files that --recipe finds."""
