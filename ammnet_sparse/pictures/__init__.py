"""Pictures, PLY files and offline pages of completed scenes and of runs."""
