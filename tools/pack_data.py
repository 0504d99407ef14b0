#!/usr/bin/env python3
"""``ammnet data pack`` without its installation: python tools/pack_data.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "data pack")

if __name__ == "__main__":
    sys.exit(main())
