#!/usr/bin/env python3
"""``ammnet environment`` without its installation: python tools/show_environment.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "environment")

if __name__ == "__main__":
    sys.exit(main())
