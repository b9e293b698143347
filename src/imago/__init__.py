"""imago: train image classifiers and trust the number.

Importing this package loads nothing heavy; each room is imported where it is used.
"""

__version__ = "0.1.0"
