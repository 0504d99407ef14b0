"""Synthetic furnished rooms in the layout of the published data, for runs that name no data set."""
