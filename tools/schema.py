"""Write JSON schemas of the YAML files in configs/, by which editors complete and check keys: `make schema`.

Each group has one: the keys of its files with their comments, and the arguments of their `_target_`, read from its
source. docs/editors.md says how editors use them.
"""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imago.cli.signatures import read_signature

PROJECT_ROOT = Path(__file__).resolve().parent.parent
CONFIGS, OUTPUT = PROJECT_ROOT / "configs", PROJECT_ROOT / "build" / "schema"
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}
INTERPOLATION = {"type": "string", "pattern": r"\$\{"}  # a key may always refer to another one, or be required: ???
GROUPS_OF_TARGETS = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}  # several files share a schema
KEY = re.compile(r"^( *)([\w-]+):[^#]*(?:#\s*(.*))?$")


def schema_of(file: Path) -> dict[str, Any]:
    """Return the schema of the content of one file, whose keys may all be left out."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    default = file.with_name("default.yaml")
    if isinstance(content, dict) and "_target_" not in content and default.is_file():  # on which the others are based
        base: Any = OmegaConf.to_container(OmegaConf.load(default), resolve=False)
        content = {"_target_": base["_target_"]} | content if "_target_" in base else content
    return _schema_of_mapping(content or {}, _comments(file.read_text(encoding="utf-8")), ())


def _schema_of_mapping(content: dict[str, Any], comments: dict[tuple[str, ...], str], path: tuple[str, ...]) -> Any:
    """Return the schema of a mapping at `path`; closed if its target accepts no other arguments."""
    target = content.get("_target_")
    signature = read_signature(target) if isinstance(target, str) else None
    properties: dict[str, Any] = {}
    for name, types in (signature.types if signature else {}).items():
        properties[name] = _value_schema(types)
    for key, value in content.items():
        name = str(key)
        if isinstance(value, dict) and value:
            properties[name] = {"anyOf": [_schema_of_mapping(value, comments, (*path, name)), {"type": "null"}]}
        elif name not in properties:
            properties[name] = {}
        if description := comments.get((*path, name)):
            properties[name] = properties[name] | {"description": description}
        if value is not None and not isinstance(value, dict | list):
            properties[name] = properties[name] | {"default": value}
    is_closed = signature is not None and not signature.is_open and not path
    if is_closed:
        properties |= {"_target_": {"const": target}, "_partial_": {}, "defaults": {}}
    return {"type": "object", "properties": properties, "additionalProperties": not is_closed}


def _value_schema(types: tuple[type, ...]) -> dict[str, Any]:
    """Return the schema of an argument of these types; none: anything."""
    names = [TYPES[one] for one in types]
    names += ["integer"] if "number" in names and "integer" not in names else []
    return {"anyOf": [*({"type": name} for name in names), INTERPOLATION, {"const": "???"}]} if names else {}


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """Return the comment behind each key, by the names of the levels above it."""
    found, parents = {}, []  # type: ignore[var-annotated]
    for line in text.splitlines():
        if match := KEY.match(line):
            indent, key, comment = len(match[1]), match[2], match[3]
            parents = [*((depth, name) for depth, name in parents if depth < indent), (indent, key)]
            if comment:
                found[tuple(name for _, name in parents)] = comment.strip()
    return found


def _of_another_target(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a file with a `_target_` of one's own, whose keys are not known."""
    known = [one["properties"]["_target_"] for one in schemas if "const" in one["properties"].get("_target_", {})]
    return {
        "type": "object",
        "required": ["_target_"],
        "properties": {"_target_": {"not": {"anyOf": known or [False]}}},
    }


def write_all() -> dict[str, list[str]]:
    """Write a schema for each group and command; return the files of each, as VS Code's `yaml.schemas` needs them."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Path]] = {}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        name = file.parent.relative_to(CONFIGS).as_posix()
        if name not in ("experiment", "debug", "hydra"):
            groups.setdefault(file.stem if name == "." else name, []).append(file)
    written = {}
    for name, files in groups.items():
        schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": name}
        schemas = [schema_of(file) for file in files]
        schema |= {"anyOf": [*schemas, _of_another_target(schemas)]} if name in GROUPS_OF_TARGETS else schemas[0]
        (OUTPUT / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
        written[f"build/schema/{name}.json"] = [file.relative_to(PROJECT_ROOT).as_posix() for file in files]
    return written


if __name__ == "__main__":
    settings = {"yaml.schemas": write_all()}
    (OUTPUT / "vscode_settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {len(settings['yaml.schemas'])} schemas to build/schema, and vscode_settings.json for VS Code")
