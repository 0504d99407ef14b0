#!/usr/bin/env python3
"""``ammnet evaluate`` without its installation: python tools/evaluate.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "evaluate")

if __name__ == "__main__":
    sys.exit(main())
