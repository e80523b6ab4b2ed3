"""Environments of brax's convention on MJX: classic systems and legged robots, with a registry."""

import lazy_loader

# Each name is in __init__.pyi, and its module is imported when the name is first touched.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
