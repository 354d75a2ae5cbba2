"""Commands: the command line, a file per group of its help."""
