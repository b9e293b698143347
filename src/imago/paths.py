"""Where the project lives, so that every command works from any folder.

`${project_root:}` in a YAML is the folder that holds `configs/` and `src/`, taken from this file's own place:
never the working directory, which differs between shells, notebooks, sweeps and ranks.
"""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def register_resolvers() -> None:
    """Make `${project_root:}` known to OmegaConf; calling it twice is harmless."""
    from omegaconf import OmegaConf

    OmegaConf.register_resolver("project_root", lambda: str(PROJECT_ROOT), replace=True)
