"""Tell within seconds whether a download can work: the libraries' own downloads have no time limit."""

import threading
import urllib.error
import urllib.request

TIMEOUT_S = 8


def is_reachable(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Ask for the headers of `url`, honouring the proxy settings; False when no answer comes in time."""
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s):
                answers.append(True)
        except (OSError, urllib.error.URLError):
            answers.append(False)

    # A daemon thread, because looking up a name can hang far beyond the socket's own time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answers and answers[0])
