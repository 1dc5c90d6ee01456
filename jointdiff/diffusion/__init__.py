"""Diffusion processes and solvers."""
