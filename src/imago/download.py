"""Check within seconds whether a server can be reached; the downloads of the libraries have no timeout."""

import threading
import urllib.request

TIMEOUT_S = 8


def is_reachable(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Request the headers of `url`, through the proxy of the environment; return False if none arrive in time."""
    reached = threading.Event()

    def request_headers() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s):
                reached.set()
        except OSError:  # URLError is one
            pass

    # In a daemon thread, because a DNS lookup can take much longer than the timeout of the socket.
    thread = threading.Thread(target=request_headers, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return reached.is_set()
