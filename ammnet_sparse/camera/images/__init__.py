"""The images of a frame turned upright and brought to the size that the network reads."""
