"""Losses, the adversarial game, the training loop and its files."""
