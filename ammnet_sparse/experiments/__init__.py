"""The rows of the paper's tables as runs, and the resulting tables."""
