"""The table of guides that the command line and comparisons know by name.

A guide is in it where its class declares a ``name`` and ``guides/__init__.pyi`` exports it; each is built as
``GUIDES[name](model, width)``, and its other options are keywords.
"""

from __future__ import annotations

from pp_models.registry import Declared, Registry, declared

GUIDES: Registry[Declared] = declared("guides", "guide", "guidebook list families")
