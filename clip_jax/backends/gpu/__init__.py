"""Layers as GPUs compute them fastest."""
