#!/usr/bin/env python3
"""``ammnet data check`` without its installation: python tools/check_data.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "data check")

if __name__ == "__main__":
    sys.exit(main())
