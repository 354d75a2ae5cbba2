"""fastmask: train, cross-validate, judge and apply classifiers of several attributes of a photo.

The public names are in `__init__.pyi` and are imported on first use, so that `import fastmask` and the command line
are fast.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
