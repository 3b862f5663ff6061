"""YAML files whose every key knows its line, and in which no key stands twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.errors import UserError

Keys = tuple[str | int, ...]
"""The way to a value: `("defaults", "distill", "betas", 0)`."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"
_SHOWN = 10
"""Duplicate keys, as many as an error lists."""


@dataclass(frozen=True, kw_only=True)
class YamlFile:
    """The mapping in a YAML file."""

    path: Path
    document: Mapping[str, Any]
    root: yaml.MappingNode | None
    """As parsed, with line numbers; None for a file that does not exist or is empty."""

    @property
    def name(self) -> str:
        return self.path.name

    def get(self, keys: Keys) -> Any:
        """The value at `keys`.

        Raises:
            KeyError: there is none.
        """
        found: Any = self.document
        for key in keys:
            if not isinstance(found, Mapping):
                raise KeyError(key)
            found = found[key]
        return found

    def line(self, keys: Keys) -> int | None:
        """The line on which the key at `keys` stands, from 1; None where it does not."""
        node: yaml.Node | None = self.root
        line = 1
        for key in keys:
            found = _child(node, key)
            if found is None:
                return None
            line, node = found
        return line

    def where(self, keys: Keys) -> str:
        """`FILE:LINE KEYS` of the key at `keys`, or of the nearest one around it."""
        around = keys
        while self.line(around) is None:
            around = around[:-1]
        return f"{self.name}:{self.line(around)} {dotted(keys)}".rstrip()


def dotted(keys: Keys) -> str:
    """`defaults.distill.betas.0`"""
    return ".".join(map(str, keys))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, no YAML, no mapping, or a key that stands twice.
    """
    return dict(read_yaml_file(path).document)


def read_yaml_file(path: Path, *, optional: bool = False) -> YamlFile:
    """As `read_yaml`, with the lines.

    Args:
        optional: whether a file that does not exist reads as an empty mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if optional:
            return YamlFile(path=path, document={}, root=None)
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable") from None
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        _refuse_duplicates(root, path)
        document = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        text = str(error).replace('"<unicode string>"', path.name)
        raise UserError(f"{path} is not valid YAML: {text}") from None
    finally:
        loader.dispose()
    if root is None and optional:
        return YamlFile(path=path, document={}, root=None)
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping, found {type(document).__name__}")
    return YamlFile(path=path, document=document, root=root)


def _refuse_duplicates(root: yaml.Node | None, path: Path) -> None:
    """Refuse a key that stands twice in one mapping, of which YAML parsers drop the first."""
    twice = [
        f"{path.name}:{again}: duplicate key {key!r} (first on line {first}); remove one of them"
        for node in _nodes(root, set())
        if isinstance(node, yaml.MappingNode)
        for key, first, again in _duplicates(node)
    ]
    if len(twice) > _SHOWN:
        twice[_SHOWN:] = [f"and {len(twice) - _SHOWN} more duplicate keys"]
    if twice:
        raise UserError("\n".join(twice))


def _duplicates(node: yaml.MappingNode) -> Iterator[tuple[str, int, int]]:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        name, line = (key.tag, key.value), key.start_mark.line + 1
        if name in lines:
            yield key.value, lines[name], line
        lines.setdefault(name, line)


def _nodes(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.Node]:
    """The nodes of a document, each once, however many aliases name it."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key, seen)
            yield from _nodes(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _nodes(value, seen)


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    """The line of a key in a mapping, or of an item in a sequence, and the node of its value.

    Constructing a document has replaced `<<` by what it merges, the merged keys first.
    """
    if isinstance(node, yaml.SequenceNode):
        if isinstance(key, int) and 0 <= key < len(node.value):
            value = node.value[key]
            return value.start_mark.line + 1, value
    elif isinstance(node, yaml.MappingNode):
        for name, value in reversed(node.value):
            if isinstance(name, yaml.ScalarNode) and name.value == str(key):
                return name.start_mark.line + 1, value
    return None
