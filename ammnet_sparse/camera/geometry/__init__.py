"""Where the camera is in its room: the vertical, the floor, the walls, and the poses that say so."""
