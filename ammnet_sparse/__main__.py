"""``python -m ammnet_sparse``: the same as ``ammnet``."""

import sys

from ammnet_sparse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
