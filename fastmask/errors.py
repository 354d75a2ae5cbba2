"""What can go wrong for a user, in a user's words."""


class FastmaskError(Exception):
    """An error whose message is one sentence for the user: what was found, what was expected, how to mend it."""

    exit_code = 1


class DataError(FastmaskError):
    """A table, a photo or a run directory holds something that cannot be used; the command exits 1."""


class UsageError(FastmaskError):
    """What was asked for does not exist or contradicts itself; the command exits 2."""

    exit_code = 2


class FastmaskWarning(UserWarning):
    """Something that does not stop the work, but that its result must be read with."""


def one_line(error: BaseException) -> str:
    """The words of another library's error in one line, without a full stop, to be put into a sentence."""
    return " ".join(str(error).split()).rstrip(".")
