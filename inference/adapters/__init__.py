"""Training of adapters: LRVD in a Trainer, its callback, and the pruning of ranks."""
