"""AMMNet-sparse: semantic scene completion from one RGB-D view on a graphics card you can afford."""

__version__ = "0.1.0"
