"""Layers as XLA's CPU backend computes them fastest."""
