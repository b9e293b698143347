"""How a run ended: the status and the reason in `summary.json`, and what the process leaves with."""

from dataclasses import dataclass
from pathlib import Path

from imago.errors import Stopped, UserError
from imago.runs.failure import first_failure, to_user_error, words
from imago.runs.signals import stopped_by


@dataclass(frozen=True)
class ExitStatus:
    """Status and reason for `summary.json`, and the error that goes on to the shell."""

    status: str
    reason: str
    error: BaseException


def exit_status(error: BaseException, folder: Path, received: int | None) -> ExitStatus:
    """Judge what broke a run off.

    Args:
        error: what came out of it.
        folder: of the run, where ranks have left their failures.
        received: the signal that this process was told to leave by, if any.
    """
    first = first_failure(folder)
    stop = _stop(error, received)
    if stop is not None and not (first and first.is_first_hand):  # torchrun stops the others where one fails
        leaving = KeyboardInterrupt() if stop.code == 130 else stop
        return ExitStatus("stopped", stop.reason, leaving)
    if isinstance(error, SystemExit) and stop is None:
        return ExitStatus("stopped", f"exit code {error.code}", error)
    error = to_user_error(error)
    if first is None or first.text == words(error):
        return ExitStatus("failed", words(error), error)
    reason = f"rank {first.rank}: {first.text}"
    return ExitStatus("failed", reason, UserError(reason) if first.is_users else error)


def _stop(error: BaseException, received: int | None) -> Stopped | None:
    """Tell a stop from a failure: Lightning and torch wrap it in many ways, and much may break while leaving."""
    if isinstance(error, Stopped):
        return error
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return Stopped("Ctrl-C", 130)
    if received is not None and not isinstance(error, UserError):
        return stopped_by(received)
    if type(error).__name__ == "SIGTERMException":  # by name: importing it would load torch
        return Stopped("SIGTERM", 143)
    exit_code = getattr(error, "exit_code", None)  # of a forked or spawned rank that alone got the signal
    return Stopped("Ctrl-C" if exit_code == 130 else "SIGTERM", exit_code) if exit_code in (130, 143) else None
