"""pdistill: diffusion models that generate in one to eight network evaluations, in JAX."""
