#!/usr/bin/env python3
"""``ammnet data rooms`` without its installation: python tools/make_rooms.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "data rooms")

if __name__ == "__main__":
    sys.exit(main())
