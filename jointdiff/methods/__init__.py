"""The joint and the conditional diffusion models."""
