#!/usr/bin/env python3
"""``ammnet data prepare`` without its installation: python tools/prepare_data.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "data prepare")

if __name__ == "__main__":
    sys.exit(main())
