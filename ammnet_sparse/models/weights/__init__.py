"""Weights: files, backbones, shipped ones, loading, conversion."""
