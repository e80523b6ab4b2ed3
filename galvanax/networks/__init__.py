"""Plain flax.nnx modules that know no task."""

import lazy_loader

# Each name is in __init__.pyi, and its module is imported when the name is first touched.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
