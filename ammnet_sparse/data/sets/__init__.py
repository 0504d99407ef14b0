"""Sets of frames on disk: published folders, packed files, lists, checks."""
