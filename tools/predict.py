#!/usr/bin/env python3
"""``ammnet predict`` without its installation: python tools/predict.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "predict")

if __name__ == "__main__":
    sys.exit(main())
