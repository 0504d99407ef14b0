"""Frames of a user's own depth camera: images, the vertical, the floor, the position of the grid."""
