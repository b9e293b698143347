"""Keep libtiff from printing: its lines do not name the file, and `imago.images` reports damaged files itself.

Importing this module does it. A Pillow that was not installed from a wheel uses libtiff of the system, and is left as
it is.
"""

import ctypes
from pathlib import Path

import PIL


def _silence() -> None:
    for file in Path(PIL.__file__).parents[1].glob("pillow.libs/libtiff*.so*"):
        library = ctypes.CDLL(str(file))  # the one that Pillow uses
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


_silence()
