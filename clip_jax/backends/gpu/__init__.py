"""Layers that are fastest on GPUs."""
