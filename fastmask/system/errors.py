"""What can go wrong for a user, in a user's words."""

from collections.abc import Sequence

from fastmask.system.text import shorten


class FastmaskError(Exception):
    """An error whose message is one sentence for the user: what was found, what was expected, how to mend it.

    fastai puts a callback's name before the text of what that raises; this one keeps its own.
    """

    exit_code = 1

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told

    def __str__(self) -> str:
        return self.told


class DataError(FastmaskError):
    """A table, a photo or a run directory holds something that cannot be used; the command exits 1."""


class UnreadableError(DataError):
    """A photo cannot be read."""


class GoneError(DataError):
    """A photo that a table names is not there."""


class UnfitError(DataError):
    """A photo's size does not go with an augmentation."""


class UsageError(FastmaskError):
    """What was asked for does not exist or contradicts itself; the command exits 2."""

    exit_code = 2


class UntrainableError(FastmaskError):
    """A fold cannot be trained by its settings: its loss is no number any more, or the memory does not suffice."""


class DivergenceError(FastmaskError):
    """The training has gone to a loss, weights or answers that are no numbers; its text says in which epoch and batch.

    `photos` are those of the batch.
    """

    def __init__(self, told: str, photos: Sequence[str] = ()) -> None:
        super().__init__(told)
        self.photos = list(photos)


class FastmaskWarning(UserWarning):
    """Something that does not stop the work, but that its result must be read with."""


def cell_error(file: object, line: object, column: str, found: object, expected: str) -> DataError:
    """The error of a table's cell: where it is, what was found, what was expected and how to mend it."""
    return DataError(f"{file}, line {line}, column {column}: found {found!r}, expected {expected}.")


def mark_said(error: BaseException) -> None:
    """Note on an exception that what it means has been said."""
    error.already_said = True  # type: ignore[attr-defined]


def is_said(error: BaseException | None) -> bool:
    """Whether what an exception means, or one that it comes from, has been said already."""
    return error is not None and (
        getattr(error, "already_said", False) or is_said(error.__cause__ or error.__context__)
    )


def install_line(extra: str) -> str:
    """The line that installs what an extra brings, as a sentence about a missing package names it.

    In double quotes, which every shell takes, Windows' own too.
    """
    return f'pip install "fastmask[{extra}]"'


def one_line(error: BaseException) -> str:
    """The message of another library's error in one short line without a full stop, or else the error's name."""
    return shorten(" ".join(str(error).split()).rstrip("."), 300) or type(error).__name__
