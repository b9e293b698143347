"""Build the documentation with Sphinx: `make docs` writes build/docs.

The page of all settings is made from the YAML files and their comments, that of the recipes from CONTRIBUTING.md.
"""

import re
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DOCS = PROJECT_ROOT / "docs"

project = "imago"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["serving/*"]
html_theme = "furo"
html_title = "imago"
html_theme_options = {"sidebar_hide_name": False}
html_copy_source = html_show_sourcelink = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
nitpicky = False


def write_settings_page() -> None:
    """Write settings.md: each YAML file of configs/ with its comments."""
    configs = PROJECT_ROOT / "configs"
    lines = ["# All settings", "", *_SETTINGS_INTRODUCTION]
    for file in sorted(configs.glob("*.yaml"), key=lambda file: (file.stem != "train", file.stem)):
        lines += ["", f"## {file.stem}.py", "", *_yaml_block(file)]
    for folder in sorted(folder for folder in configs.iterdir() if folder.is_dir() and folder.name != "hydra"):
        lines += ["", f"## {folder.name}"]
        for file in sorted(folder.glob("*.yaml"), key=lambda file: (file.stem != "default", file.stem)):
            lines += ["", f"### {folder.name}={file.stem}", "", *_yaml_block(file)]
    (DOCS / "settings.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


_SETTINGS_INTRODUCTION = [
    "Type a setting as it stands here, with the names of the levels above it: `python src/train.py optimizer.lr=3e-4`.",
    "`group=name` chooses a file: `optimizer=sgd`. Every argument of a `_target_` is a setting, also if not listed.",
    "`python src/train.py --cfg job --resolve` prints the final value of each.",
]


def _yaml_block(file: Path) -> list[str]:
    """Return the first comment of a YAML file as text, and the rest without the settings of Hydra as a block."""
    lines = file.read_text(encoding="utf-8").rstrip().split("\n")
    lines = [line for line in lines if line != "# @package _global_"]
    num_comments = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    title, *fields = [line.removeprefix("#").strip() for line in lines[:num_comments]] or [""]
    text = [title, *(f"- {field}" if re.match(r"[\w-]+: ", field) else field for field in fields)]
    body = "\n".join(lines[num_comments:])
    body = re.sub(r"^hydra:\n(?:(?: .*)?\n?)*", "", body, flags=re.MULTILINE).strip()
    text = [line.replace("<", "\\<").replace("*", "\\*") for line in text]
    if any(line.startswith("- ") for line in text):
        text.insert(next(index for index, line in enumerate(text) if line.startswith("- ")), "")
    return [*text, "", *(["```yaml", body, "```"] if body else [])]


def write_recipes_page() -> None:
    """Write recipes.md: the recipes of CONTRIBUTING.md, which the tests run."""
    text = (PROJECT_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipes = text[text.index("## A network") : text.index("## Submit a change")]
    (DOCS / "recipes.md").write_text(_RECIPES_INTRODUCTION + recipes, encoding="utf-8")


_RECIPES_INTRODUCTION = """# Recipes

Each recipe is one module in a package of your own next to imago, here `src/mynet/`, and one YAML file. There is nothing
to register: training, resume, eval, predict, export and report work with it.

"""


def name_other_files(_app: object, _docname: str, source: list[str]) -> None:
    """Turn links to files that are no pages into their names."""
    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./|serving/)[\w./-]+|[\w-]+\.sbatch)\)", _name_of_file, source[0])


_PAGES = {"../CONTRIBUTING.md": "recipes.md", "../configs": "settings.md"}  # made from these files


def _name_of_file(match: re.Match[str]) -> str:
    if page := _PAGES.get(match[2]):
        return f"[{match[1]}]({page})"
    path = match[2].removeprefix("../") if match[2].startswith("../") else f"docs/{match[2]}"
    return f"`{path}`" if match[1].endswith(Path(path).name) else f"{match[1]} (`{path}`)"


def setup(app) -> None:  # noqa: ANN001
    """Write the pages that are made from other files, before Sphinx looks for pages."""
    write_settings_page()
    write_recipes_page()
    app.connect("source-read", name_other_files)
