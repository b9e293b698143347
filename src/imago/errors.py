"""The errors that a user can cause: one line and exit code 2. Anything else is a bug and keeps its traceback."""


class UserError(Exception):
    """Something a user can mend: the text names the setting or file, what it got, what it wants and the way out."""


class ConfigError(UserError):
    """A setting that cannot work, named as it is typed on the command line."""


class DivergedError(UserError):
    """Training left the finite numbers: too high a learning rate, most of the time."""


class DataError(UserError):
    """A file or folder that is missing, damaged or not what it should be."""


class StorageError(UserError, OSError):
    """A file that cannot be written: no space, no right, too large."""


class Stopped(SystemExit):
    """Somebody told the run to end, and it left at a safe place.

    Args:
        reason: who or what, e.g. "SIGTERM".
        exit_code: what the process leaves with.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(exit_code)
        self.reason = reason
