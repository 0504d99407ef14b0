#!/usr/bin/env python3
"""Bytes that the CUDA kernels must move, and what the compiler made of them: tools/bench/kernel_report.py."""

from bench.kernel_report import main

if __name__ == "__main__":
    main()
