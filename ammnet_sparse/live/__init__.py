"""Completing a stream of frames: where they come from, the newest of them, and the viewer that shows it."""
