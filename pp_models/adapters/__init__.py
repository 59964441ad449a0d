"""Low-rank adapters whose ranks are latent: LRVD's model."""
