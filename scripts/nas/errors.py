"""What a user is told when something can't be done."""

from modelkit.artifact import ArtifactError
from modelkit.files import LockError
from modelkit.store import StoreError


class NasError(Exception):
    """One or two lines: what is wrong, where, and what to do next. Shown without a traceback."""


TOLD = (NasError, StoreError, ArtifactError, LockError)  # all whose words are for a person
