"""Commands: the command line, a file per subject; a command is a function in one of them, added by its decorator."""
