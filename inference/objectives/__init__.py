"""Objectives: which data the guide sees, which data the likelihood scores, and what divergence ties them.

Names are loaded when they are first asked for; ``__init__.pyi`` says where each is, ``table.py`` has those that
``make`` knows.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
