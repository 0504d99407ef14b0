"""The command ``ammnet``: one file per command; ``options`` and ``errors`` are shared, ``main`` lists them."""

import os

# OpenMP's threads spin while they wait for each other, and where something else has one of the cores they wait for
# long: steps took 16.6 instead of 1.9 s (docs/notebook). Read once, when PyTorch is loaded, which this precedes.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"
