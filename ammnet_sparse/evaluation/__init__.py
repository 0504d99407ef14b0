"""Metrics, baselines, flips at test time and the table of scores."""
