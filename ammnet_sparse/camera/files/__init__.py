"""The files of a frame: which belong together, and what they say: color, depth, label map, pose, intrinsics."""
