"""Errors and warnings with messages for the user, in whole sentences."""

from collections.abc import Sequence

from fastmask.system.text import shorten


class FastmaskError(Exception):
    """An error with a message of one sentence for the user: what was found, what was expected, how to fix it.

    fastai prepends the name of a callback to the text of its exceptions; `__str__` returns the message without it.

    >>> try:
    ...     fm.read_recipe("fast")
    ... except fm.FastmaskError as error:
    ...     print(error.exit_code, error)
    2 There is no recipe 'fast'; expected one of quick, report, strong, winner.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class DataError(FastmaskError):
    """A table, a photo or a run directory has invalid content; the command exits 1. `line` is that of the table.

    >>> try:
    ...     fm.contest_heads()["mask"].encode("half")
    ... except fm.DataError as error:
    ...     print(error)
    mask 'half' is not one of wear, incorrect, none.
    """

    line: int | None = None


class UnreadableError(DataError):
    """A photo cannot be read."""


class MissingPhotoError(DataError):
    """A photo that a table names does not exist; `photo` is its name there."""

    def __init__(self, message: str, photo: str = "") -> None:
        super().__init__(message)
        self.photo = photo


class PhotoSizeError(DataError):
    """A photo has a size that an augmentation cannot process."""


class UsageError(FastmaskError):
    """Invalid or contradicting arguments; the command exits 2.

    >>> try:
    ...     fm.contest_heads()["hat"]
    ... except fm.UsageError as error:
    ...     print(error)
    There is no head 'hat'; the heads are mask, gender, age.
    """

    exit_code = 2


class UntrainableError(FastmaskError):
    """A fold cannot be trained with its settings: its loss is NaN or inf, or it runs out of memory."""


class DivergenceError(FastmaskError):
    """Loss, weights or outputs are NaN or inf; the message names the epoch and batch, `photos` are the batch's."""

    def __init__(self, message: str, photos: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.photos = list(photos)


class FastmaskWarning(UserWarning):
    """Something that does not stop the work, but matters for its result.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as found:
    ...     warnings.simplefilter("always", fm.FastmaskWarning)
    ...     folds = fm.assign_folds(table, 2, stratify="mask", group=None)
    >>> {warning.category.__name__ for warning in found}
    {'FastmaskWarning'}
    """


def mark_reported(error: BaseException) -> None:
    """Note on an exception that its message has been printed."""
    error.already_reported = True  # type: ignore[attr-defined]


def is_reported(error: BaseException | None) -> bool:
    """Whether the message of an exception, or of one of its causes, has been printed."""
    return error is not None and (
        getattr(error, "already_reported", False) or is_reported(error.__cause__ or error.__context__)
    )


def install_line(extra: str) -> str:
    """The command that installs an extra, in double quotes, which the shells of all systems accept."""
    return f'pip install "fastmask[{extra}]"'


def one_line(error: BaseException) -> str:
    """The message of another library's error in one short line without a full stop, or else the error's name."""
    return shorten(" ".join(str(error).split()).rstrip("."), 300) or type(error).__name__


def cell_error(file: object, line: object, column: str, found: object, expected: str) -> DataError:
    """The error of a table's cell: where it is, what was found, and what was expected."""
    return DataError(f"{file}, line {line}, column {column}: found {found!r}, expected {expected}.")
