#!/usr/bin/env python3
"""Benchmark of the operators against plain PyTorch: tools/bench/kernels.py."""

from bench.kernels import main

if __name__ == "__main__":
    main()
