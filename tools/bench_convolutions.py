#!/usr/bin/env python3
"""Benchmark of the convolutions of a step, each in every way: tools/bench/convolutions.py."""

import sys

from bench.convolutions import main

if __name__ == "__main__":
    sys.exit(main())
