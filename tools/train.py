#!/usr/bin/env python3
"""``ammnet train`` without its installation: python tools/train.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "train")

if __name__ == "__main__":
    sys.exit(main())
