"""Models, guides and objectives side by side."""
