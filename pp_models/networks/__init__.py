"""Networks whose weights are latent: NVDP's and BNNP's models, and the priors over weights."""
