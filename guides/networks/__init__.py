"""Guides over the weights of a network: NVDP's dropout rates, BNNP's layerwise posteriors, and those compared with."""
