"""Write the chart's values.yaml, values.schema.json and docs/values.md from the schema.yaml files.

Usage: python scripts/chart_values.py [--check]     --check only says which are out of date, by its exit status
"""

import copy
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts/nas"
PARTS = ("experiment", "storage", "bridge", "serving", "batch")
WIDTH = 116
Schema = dict[str, Any]


def source() -> Schema:
    """The whole schema with `use`, `include` and `open` resolved: plain JSON Schema, closed where it isn't `open`."""
    whole: Schema = yaml.safe_load((CHART / "schema.yaml").read_text())
    definitions = whole.pop("definitions")
    for part in PARTS:
        whole["properties"][part] = yaml.safe_load((CHART / "charts" / part / "schema.yaml").read_text())
    resolved: Schema = _resolved(whole, definitions)
    for part in PARTS:
        resolved["properties"][part]["properties"]["global"] = {"$ref": "#/properties/global"}  # every subchart gets it
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart nas", **resolved}


def _resolved(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_resolved(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    if isinstance(used := node.pop("use", None), str):
        node = copy.deepcopy(definitions[used]) | node
    if isinstance(included := node.pop("include", None), str):
        node["properties"] = node["properties"] | definitions[included]["properties"]
    is_open = node.pop("open", False)
    result = {key: _resolved(value, definitions) if key != "default" else value for key, value in node.items()}
    if result.get("type") == "object" and not is_open:
        result.setdefault("additionalProperties", False)
    if isinstance(values := result.get("additionalProperties"), dict):
        for item in (values, *values.get("properties", {}).values()):
            _allow_null(item)
    if "default" in result and _may_be_empty(result):
        _allow_null(result)
    if needed := [name for name, inner in branches(result) if not _takes_null(inner)]:
        result["required"] = needed  # by null, Helm takes the key itself away
    return result


def _may_be_empty(node: Schema) -> bool:
    """Whether null, which takes a default away as Helm's users know it, means the same as an empty value."""
    match node.get("type"):
        case "object":
            return node["default"] == {} or isinstance(node.get("additionalProperties"), dict)
        case "array":
            return "minItems" not in node
        case "string":
            return "minLength" not in node and re.search(node.get("pattern", ""), "") is not None
    return False


def _takes_null(node: Schema) -> bool:
    return None in node.get("enum", []) or "null" in node.get("type", [])


def _allow_null(node: Schema) -> None:
    if "enum" in node:
        node["enum"] = [*node["enum"], None]
    else:
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        node["type"] = list(dict.fromkeys([*kinds, "null"]))


def branches(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The properties that have a default, or properties of their own that do."""
    for name, node in schema.get("properties", {}).items():
        if "default" in node or any(branches(node)):
            yield name, node


def values(schema: Schema, depth: int = 0) -> Iterator[str]:
    """Lines of values.yaml."""
    indent = "  " * depth
    for name, node in branches(schema):
        if not depth:
            yield ""
        if description := node.get("description"):
            yield from textwrap.wrap(description, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if "default" in node:
            flow = yaml.safe_dump(node["default"], default_flow_style=True, sort_keys=False, width=10**6)
            yield f"{indent}{name}: {flow.removesuffix('...' + chr(10)).strip()}"
        else:
            yield f"{indent}{name}:"
            yield from values(node, depth + 1)


def reference(schema: Schema, path: str = "") -> Iterator[str]:
    """Rows of the table in docs/values.md."""
    for name, node in branches(schema):
        key = f"{path}{name}"
        if "default" in node:
            default = json.dumps(node["default"], ensure_ascii=False)
            cells = (f"`{key}`", _type(node), f"`{default}`", node.get("description", ""))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        else:
            if description := node.get("description"):
                yield f"| `{key}` | | | {description} |"
            yield from reference(node, f"{key}.")


def _type(node: Schema) -> str:
    if "enum" in node:
        return ", ".join(str(value or "null") for value in node["enum"])
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    names = {"array": "list", "object": "map"}
    words = " or ".join(names.get(str(kind), str(kind)) for kind in kinds if kind != "null" or node["default"] is None)
    limits = [f"≥ {node['minimum']}"] if "minimum" in node else []
    limits += [f"≤ {node['maximum']}"] if "maximum" in node else []
    return " ".join([words, *limits])


def written(schema: Schema) -> dict[Path, str]:
    """What each file holds."""
    head = (
        "# Every value of the chart, and its default. Made from the schema.yaml files by `make values`: edit those.\n"
    )
    page = [
        "# Values\n\nEvery key of `charts/nas`, its type, its default and what it does. An unknown key is an error.",
        "Made from the chart's `schema.yaml` files by `make values`.\n",
    ]
    for name, node in schema["properties"].items():
        page += [f"## {name}\n\n{node['description']}\n", "| key | type | default | |\n| --- | --- | --- | --- |"]
        page += [*reference(node, f"{name}."), ""]
    return {
        CHART / "values.yaml": head + "\n".join(values(schema)) + "\n",
        CHART / "values.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
        ROOT / "docs/values.md": "\n".join(page),
    }


def main() -> int:
    stale = {path: text for path, text in written(source()).items() if not path.exists() or path.read_text() != text}
    if "--check" not in sys.argv:
        for path, text in stale.items():
            path.write_text(text)
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is out of date: run `make values`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
