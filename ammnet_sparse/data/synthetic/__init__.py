"""Synthetic furnished rooms in the layout of the published data: what a run uses that names no data set."""
