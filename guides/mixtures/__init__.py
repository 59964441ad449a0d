"""Guides over mixture weights: NMDP's Dirichlet, and those compared with."""
