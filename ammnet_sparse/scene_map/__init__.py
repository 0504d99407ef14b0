"""Many posed frames of one room, completed and fused into one map."""
