"""``python -m ammnet_sparse.cli``: the command ``ammnet`` of this interpreter, wherever it is installed."""

import sys

from ammnet_sparse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
