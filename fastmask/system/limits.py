"""Limits: the most that is read from files, so that a forged one cannot fill the memory.

Files of users and of fastmask stay far below. Limits of an algorithm or a display are where they are used.
"""

# bytes of files
YAML_BYTES, JSON_BYTES, PHOTO_BYTES, LOCK_BYTES = 2**22, 2**27, 2**28, 1000
# values in YAML with its aliases expanded, and levels of nesting
YAML_VALUES, YAML_DEPTH = 500_000, 40
# characters of a line and of a cell of a CSV, its columns, digits of a number
LINE, CELL, COLUMNS, DIGITS = 2**22, 4096, 100_000, 100
# of a photo, where Pillow starts to warn
PIXELS = 178_956_970
# runs in an ensemble, joint classes of the heads
MEMBERS, JOINT_CLASSES = 100, 2**62
# bytes of a training state: per parameter, and of a custom loss
PARAMETER_BYTES, LOSS_BYTES = 64, 2**30
