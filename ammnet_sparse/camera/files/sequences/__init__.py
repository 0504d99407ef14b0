"""Sequences of posed frames of one camera, as scanners, apps and published sets write them."""
