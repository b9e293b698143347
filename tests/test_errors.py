"""Exceptions: which ones exit with code 2 is tested with `cli`; here those that are of two kinds."""

import pytest

from imago.errors import Stopped, StorageError, UserError


def test_stopped_exits_the_process_with_its_code_and_has_a_reason():
    with pytest.raises(SystemExit) as exit_:
        raise Stopped("SIGTERM", 143)
    assert (exit_.value.code, exit_.value.reason) == (143, "SIGTERM")


def test_a_storage_error_is_an_error_of_the_user_and_of_the_system():
    assert issubclass(StorageError, UserError)
    assert issubclass(StorageError, OSError)
