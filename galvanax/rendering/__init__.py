"""Seeing a motion: films, contact sheets, a web page to turn and scrub, and files that replay anywhere."""

import lazy_loader

# Each name is in __init__.pyi, and its module is imported when the name is first touched.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
