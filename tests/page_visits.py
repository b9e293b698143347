"""Give photos to the page of the service, in a browser, and find its barriers."""

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

RED, GREEN, BLUE, GRAY = (200, 50, 50), (50, 200, 50), (50, 50, 200), (128, 120, 120)

# Give a file to the page as a drop or a paste does.
GIVE = """([kind, name, type, base64]) => {
  const data = new DataTransfer(), bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  if (name) data.items.add(new File([bytes], name, { type })); else data.setData('text/plain', 'a text');
  const options = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === 'drop' ? new DragEvent('drop', { ...options, dataTransfer: data })
    : new ClipboardEvent('paste', { ...options, clipboardData: data })) }"""


def image(color: tuple[int, int, int], width: int = 120, height: int = 100, format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), color).save(content, format)
    return content.getvalue()


def file(name: str, content: bytes, type: str = "image/png") -> Any:
    return {"name": name, "mimeType": type, "buffer": content}


def choose(page: "Page", *files: Any) -> None:
    """Choose files and wait for the end."""
    page.wait_for_selector("#limits:not(:empty)")
    page.set_input_files("#files", list(files))
    wait(page)


def wait(page: "Page") -> None:
    page.wait_for_selector("#result:visible, #errors p")
    page.wait_for_selector("#progress", state="hidden")


def give(page: "Page", kind: str, name: str, content: bytes = b"") -> None:
    page.wait_for_selector("#limits:not(:empty)")
    page.evaluate(GIVE, [kind, name, "image/png", base64.b64encode(content).decode()])
    wait(page)


def violations(page: "Page") -> list[str]:
    """Return what axe-core finds wrong, with the elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]
