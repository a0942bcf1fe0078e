"""What a user is told when something can't be done."""


class NasError(Exception):
    """One or two lines: what is wrong, where, and what to do next. Shown without a traceback."""
