"""Reading files that may be damaged, hostile, or something else: the one place through which everything goes."""
