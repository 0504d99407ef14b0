"""Completing a stream of frames: its sources, the newest frame, and the viewer."""
