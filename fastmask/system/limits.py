"""Limits: the largest files and values that are read, so that a malicious file cannot fill the memory.

Real files stay far below. Limits of algorithms and displays are in their own modules.
"""

# bytes of files
YAML_BYTES, JSON_BYTES, PHOTO_BYTES, LOCK_BYTES = 2**22, 2**27, 2**28, 1000
# values in YAML with its aliases expanded, and levels of nesting
YAML_VALUES, YAML_DEPTH = 500_000, 40
# characters of a line and of a cell of a CSV, its columns, digits of a number
LINE, CELL, COLUMNS, DIGITS = 2**22, 4096, 100_000, 100
# runs in an ensemble, joint classes of the heads
MEMBERS, JOINT_CLASSES = 100, 2**62
# bytes of a training state: per parameter, and of a custom loss
PARAMETER_BYTES, LOSS_BYTES = 64, 2**30
