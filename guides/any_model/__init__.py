"""Amortised guides of any Pyro model."""
