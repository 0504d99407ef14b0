#!/usr/bin/env python3
"""`ammnet experiments` of this checkout."""

import sys

from ammnet_sparse.cli.main import run

if __name__ == "__main__":
    sys.exit(run("experiments"))
