"""System: the machine under it: files, locks, the terminal, random numbers, memory."""
