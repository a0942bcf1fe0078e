"""Write the chart's values.yaml, values.schema.json and docs/values.md from the schema.yaml files.

Usage: python scripts/chart_values.py [--check]     --check only says whether one is out of date, by its exit status
"""

import json
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
        node = definitions[used] | node
    if isinstance(included := node.pop("include", None), str):
        node["properties"] = node["properties"] | definitions[included]["properties"]
    is_open = node.pop("open", False)
    result = {key: _resolved(value, definitions) if key != "default" else value for key, value in node.items()}
    if result.get("type") == "object" and not is_open:
        result.setdefault("additionalProperties", False)
    if isinstance(each := result.get("additionalProperties"), dict):
        for item in (each, *each.get("properties", {}).values()):
            _allow_null(item)
    may_be_empty = isinstance(each, dict) or (result.get("type") == "array" and "minItems" not in result)
    if "default" in result and (may_be_empty or result["default"] in ({}, "")):
        _allow_null(result)  # it takes a default away, as Helm's users know it
    required = [path[0] for path, inner in walk(result) if len(path) == 1 and not _takes_null(inner)]
    if required:
        result["required"] = required  # by null, Helm takes the key itself away
    return result


def _takes_null(node: Schema) -> bool:
    return None in node.get("enum", []) or "null" in node.get("type", [])


def _allow_null(node: Schema) -> None:
    if "enum" in node:
        node["enum"] = [*node["enum"], None]
    else:
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        node["type"] = list(dict.fromkeys([*kinds, "null"]))


def walk(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """The properties, depth first, that have a default, or properties of their own that do: their path and schema."""
    for name, node in schema.get("properties", {}).items():
        inner = list(walk(node, (*path, name))) if "default" not in node else []
        if inner or "default" in node:
            yield (*path, name), node
            yield from inner


def values(schema: Schema) -> Iterator[str]:
    """Lines of values.yaml."""
    for path, node in walk(schema):
        indent = "  " * (len(path) - 1)
        if not indent:
            yield ""
        comment = f"{indent}# "
        yield from textwrap.wrap(node.get("description", ""), WIDTH, initial_indent=comment, subsequent_indent=comment)
        if "default" in node:
            line = {path[-1]: node["default"]}
            yield indent + yaml.safe_dump(line, default_flow_style=True, sort_keys=False, width=10**6)[1:-2]
        else:
            yield f"{indent}{path[-1]}:"


def reference(schema: Schema) -> Iterator[str]:
    """Lines of docs/values.md: a table for each part."""
    for path, node in walk(schema):
        description = node.get("description", "")
        if len(path) == 1:
            yield f"\n## {path[0]}\n\n{description}\n\n| key | type | default | |\n| --- | --- | --- | --- |"
        elif "default" in node:
            default = json.dumps(node["default"], ensure_ascii=False)
            cells = (f"`{'.'.join(path)}`", _type(node), f"`{default}`", description)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        elif description:
            yield f"| `{'.'.join(path)}` | | | {description} |"


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
    page = (
        "# Values\n\nEvery key of `charts/nas`, its type, its default and what it does. An unknown key is an error.\n"
        "Made from the chart's `schema.yaml` files by `make values`.\n"
    )
    return {
        CHART / "values.yaml": head + "\n".join(values(schema)) + "\n",
        CHART / "values.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
        ROOT / "docs/values.md": page + "\n".join(reference(schema)) + "\n",
    }


def main() -> None:
    for path, text in written(source()).items():
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run `make values`")


if __name__ == "__main__":
    main()
