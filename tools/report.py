#!/usr/bin/env python3
"""``ammnet report`` without its installation: python tools/report.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "report")

if __name__ == "__main__":
    sys.exit(main())
