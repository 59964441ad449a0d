"""Mixtures of experts with latent weights: NMDP's model, its distributions and its exact evidence."""
