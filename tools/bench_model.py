#!/usr/bin/env python3
"""Benchmark of a training step of the sparse and of the dense network: tools/bench/model.py."""

import sys

from bench.model import main

if __name__ == "__main__":
    sys.exit(main())
