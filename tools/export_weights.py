#!/usr/bin/env python3
"""``ammnet export`` without its installation: python tools/export_weights.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "export")

if __name__ == "__main__":
    sys.exit(main())
