"""Losses, the adversarial game, the loop and what a run keeps."""
