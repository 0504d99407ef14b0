"""The command ``ammnet``: one file per command; ``options`` and ``errors`` are shared, ``main`` lists them."""
