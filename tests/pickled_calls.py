"""What a file of an attacker holds."""

from typing import Any


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]
