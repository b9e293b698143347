"""Read the images of a request: the file parts of a form (RFC 7578), or the body itself.

Starlette's parser is made for forms that arrive in pieces: it would take a tenth of the time of a small network, and
write large files to disk. Here the body is complete and of limited size, so that it can be split.
"""

import re
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from imago.serve.errors import RequestError

_MAX_BOUNDARY = 70  # characters: RFC 2046, section 5.1.1
_EXTENDED_NAME = re.compile(rb";\s*filename\*=utf-8'[^']*'([^;\s]*)", re.IGNORECASE)
_MAX_HEAD = 8192  # bytes of the headers of a part; our own choice


def read_files(body: bytes, content_type: str, max_files: int) -> list[tuple[str | None, bytes]]:
    """Return the names and contents of the images in a request; a body that is no form is an image without a name.

    Raises:
        RequestError: the form is damaged, or has no file or too many.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return [(None, body)]
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise _damaged("its boundary is missing or too long")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, 2 * max_files + 2)  # as many texts as files are ignored
    if not parts or not parts.pop().startswith(b"--"):
        raise _damaged(f"it has no end, or more than {max_files} files")
    contents = [_read_part(part) for part in parts]
    files: list[tuple[str | None, bytes]] = [(name, content) for name, content in contents if name is not None]
    if len(files) > max_files:
        raise _damaged(f"it has more than {max_files} files")
    if not files:
        raise RequestError("bad_request", "the form has no file; send one or more images as file parts.")
    return files


def _read_part(part: bytes) -> tuple[str | None, bytes]:
    """Return the name of the file in a part, None for another field, and the content."""
    head, blank_line, content = part.partition(b"\r\n\r\n")
    if not blank_line or not head.startswith(b"\r\n") or len(head) > _MAX_HEAD:
        raise _damaged("a part has no header")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            filename = parse_options_header(value)[1].get(b"filename")
            if filename is None and (extended := _EXTENDED_NAME.search(value)):  # RFC 5987
                filename = unquote_to_bytes(extended[1])
            return (None if filename is None else filename.decode(errors="backslashreplace")), content
    raise _damaged("a part has no Content-Disposition")


def _damaged(reason: str) -> RequestError:
    return RequestError("bad_request", f"the form cannot be read: {reason}.")
