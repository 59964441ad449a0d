"""The papers' experiments, each by one name: ``guidebook reproduce nvdp/gp-random``.

Names are loaded when they are first asked for; ``__init__.pyi`` says where each is, ``table.py`` has the experiments.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
