"""Forms of browsers and clients are read as they were written; damaged ones are refused in linear time."""

import httpx
import pytest

from imago.serve.errors import RequestError
from imago.serve.forms import read_files

TYPE = "multipart/form-data; boundary=b"


def part(head: str, content: bytes = b"x") -> bytes:
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def file_part(name: str, content: bytes = b"x") -> bytes:
    return part(f'Content-Disposition: form-data; name="f"; filename="{name}"', content)


def test_forms_of_another_library_are_read():
    contents = [b"", b"\r\n--", b"--b--", bytes(range(256)) * 5, b"\r\n\r\n\r\n"]
    files = [("f", (f"n {index} \u00e4.png", content)) for index, content in enumerate(contents)]
    request = httpx.Request("POST", "http://a", files=files, data={"text": "not a file"})
    found = read_files(request.read(), request.headers["content-type"], max_files=5)
    assert [content for _, content in found] == contents
    assert found[3][0] == "n 3 \u00e4.png"


def test_a_body_of_another_type_is_one_image():
    for content_type in ("", "image/png", "application/x-www-form-urlencoded", ";;=", "multipart/mixed; boundary=b"):
        assert read_files(b"--b--", content_type, 1) == [(None, b"--b--")]


def test_preamble_epilogue_and_quotes_are_accepted():
    body = b"ignored\r\n" + file_part('a\\"b') + b"--b--\r\nignored"
    assert read_files(body, 'Multipart/Form-Data; boundary="b"', 1) == [('a"b', b"x")]
    assert read_files(file_part("a").replace(b"Content-D", b"content-d") + b"--b--", TYPE, 1) == [("a", b"x")]


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "multipart/form-data", "its boundary is missing"),
        (b"", "multipart/form-data; boundary=" + "b" * 71, "its boundary is missing or too long"),
        (b"", TYPE, "it has no end"),
        (file_part("a"), TYPE, "it has no end"),
        (file_part("a") * 3 + b"--b--", TYPE, "it has more than 2 files"),
        (file_part("a") * 99 + b"--b--", TYPE, "or more than 2 files"),
        (b"--b\r\nno blank line\r\n--b--", TYPE, "a part has no header"),
        (part("X: y") + b"--b--", TYPE, "a part has no Content-Disposition"),
        (part("X: " + "y" * 9000) + b"--b--", TYPE, "a part has no header"),
        (part('Content-Disposition: form-data; name="f"') + b"--b--", TYPE, "the form has no file"),
        (b"--b--", TYPE, "the form has no file"),
    ],
)
def test_a_damaged_form_is_refused(body: bytes, content_type: str, message: str):
    with pytest.raises(RequestError, match=message) as caught:
        read_files(body, content_type, max_files=2)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("pattern", [b"\r\n--", b"\r\n--b", b"\r\n", b"-", b"\r\n--b\r\n"])
def test_forms_of_the_largest_size_are_refused_at_once(pattern: bytes):
    with pytest.raises(RequestError):
        read_files(pattern * (25 * 2**20 // len(pattern)), TYPE, max_files=32)


def test_a_name_of_other_letters_than_ascii_is_read_in_both_ways_of_writing_it():
    header = "Content-Disposition: form-data; name=\"f\"; filename*=UTF-8''%E2%82%AC%201.jpg"
    assert read_files(part(header) + b"--b--", TYPE, 1) == [("\u20ac 1.jpg", b"x")]
