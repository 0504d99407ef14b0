"""Frames, batches and datasets; in the folders sets on disk, volumes, cameras, raw files and generated rooms."""
