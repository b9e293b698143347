"""Exceptions for errors that a user can cause: reported in one line, exit code 2 unless the class has another.

Any other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """An error that a user can fix; the message names the setting or file, its value, the expected one and the fix."""

    exit_code = 2


class ConfigError(UserError):
    """A setting that cannot work, named as typed on the command line."""


class DivergedError(UserError):
    """NaN or infinite values during training, most often caused by a learning rate that is too high."""


class DataError(UserError):
    """A file or directory that is missing, damaged or of the wrong kind."""


class ImageError(DataError):
    """An image that is damaged, or that cannot be used for the reason that a subclass names."""

    code = "corrupt_image"  # of the HTTP service


class EmptyImageError(ImageError):
    """A file of no bytes."""

    code = "empty_file"


class LargeImageError(ImageError):
    """An image with more pixels than the limit."""

    code = "too_many_pixels"


class UnsupportedImageError(ImageError):
    """A file that is not an image, or an image of a kind that is not read."""

    code = "unsupported_image"


class IncompleteError(UserError):
    """All results are written, but a part of the input could not be used or needs a decision."""

    exit_code = 1


class NothingToDo(UserError):
    """A finished run that is resumed without more to train: reported in one line, exit code 0, for loops of jobs."""

    exit_code = 0


class StorageError(UserError, OSError):
    """A file that cannot be written: disk full, permission denied or too large."""


class Stopped(SystemExit):
    """The run was stopped from outside, between two training steps.

    Args:
        reason: the cause, e.g. "SIGTERM".
        exit_code: exit code of the process: 130 or 143, 0 in a rank other than 0.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(exit_code)
        self.reason = reason
