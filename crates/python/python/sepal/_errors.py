"""The exception of this package."""


class SepalError(RuntimeError):
    """Failure of a run, a prediction or remote blocks. The text says what failed, why, and what to do."""
