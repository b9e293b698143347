"""A Hub on this machine: it takes the requests of `huggingface_hub` for an upload, and keeps what is uploaded."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What the server has got, and how it answers."""

    url: str = ""
    is_public: bool = False  # the repository, before the upload
    refuses: bool = False  # every change, as for a token that may not write
    fault: str = ""  # of the front matter
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run the server until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def answer(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_GET(self) -> None:
            self.answer({"id": "me/flowers", "private": not hub.is_public, "siblings": [], "tags": [], "sha": "0" * 40})

        def do_POST(self) -> None:
            content = self.body()
            if hub.refuses:
                self.answer({"error": "You don't have the rights to create a model under the namespace me"}, 403)
            elif self.path == "/api/repos/create":
                hub.created.append(json.loads(content))
                self.answer({"url": f"{hub.url}/me/flowers", "name": "me/flowers"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(content)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer({"files": modes})
            elif "/commit/" in self.path:
                entries = [json.loads(line)["value"] for line in content.splitlines() if b'"file"' in line[:20]]
                hub.files |= {entry["path"]: base64.b64decode(entry["content"]) for entry in entries}
                url = f"{hub.url}/me/flowers/commit/{'1' * 40}"
                self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": url})
            else:
                errors = [{"message": hub.fault}] if hub.fault else []
                self.answer({"errors": errors, "warnings": []}, 400 if hub.fault else 200)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
