"""Where the project lives, so that every command works from any folder.

`${project_root:}` in a YAML is the folder that holds `configs/` and `src/`, taken from this file's own place:
never the working directory, which differs between shells, notebooks, sweeps and ranks.
"""

import os
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def register_resolvers() -> None:
    """Make `${project_root:}` known to OmegaConf; calling it twice is harmless."""
    from omegaconf import OmegaConf

    OmegaConf.register_resolver("project_root", lambda: str(PROJECT_ROOT), replace=True)


def as_typed(path: Path) -> str:
    """Give a path as one would type it here, from the root or from the working directory, whichever is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
