"""The command ``ammnet``: a file a command, what they share in ``options`` and ``errors``, their table in ``main``."""
