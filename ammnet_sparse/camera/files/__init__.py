"""The files of a frame: finding those that belong together, and reading images, label map, pose and intrinsics."""
