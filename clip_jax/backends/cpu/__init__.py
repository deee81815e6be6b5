"""Layers that are fastest with XLA's CPU backend."""
