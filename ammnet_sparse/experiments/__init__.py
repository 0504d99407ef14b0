"""The rows of the paper's tables as runs, and the tables that these make."""
