"""Reading files that may be damaged, hostile, or of another kind; all files are read through this package."""
