"""Comparators: one file per method, its whole loss in view."""
