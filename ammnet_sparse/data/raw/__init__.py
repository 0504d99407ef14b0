"""SSCNet's raw .png and .bin files."""
