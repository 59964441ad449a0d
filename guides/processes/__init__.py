"""Guides of neural processes, bootstraps, and adaptation by gradient steps."""
