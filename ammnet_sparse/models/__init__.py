"""The networks, from built parts, and the dense reference."""
