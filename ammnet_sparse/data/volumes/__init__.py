"""Volumes in the grid: TSDF, mapping and labels, and the camera that they are made for."""
