#!/usr/bin/env python3
"""``ammnet convert`` without its installation: python tools/convert_checkpoint.py ..., with the same options."""

import functools
import sys

from ammnet_sparse.cli.main import run

main = functools.partial(run, "convert")

if __name__ == "__main__":
    sys.exit(main())
