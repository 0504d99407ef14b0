"""The camera's position in its room: the vertical, the floor, the walls, and given poses."""
