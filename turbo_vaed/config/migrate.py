"""A params.yaml that has everything -> the four files, line by line, so that no comment is lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.config.load import DEVICES, FILES, FINANCE, OWN_KEYS, PARAMS, POLICY
from turbo_vaed.config.past_keys import RENAMED
from turbo_vaed.config.yaml_file import YamlFile, read_yaml_file
from turbo_vaed.errors import UserError

_HEADINGS = {
    PARAMS: "",
    POLICY: "# What each use case demands of a package before it is promoted, and why.\n",
    DEVICES: "# Where packages are measured, by name; gate.device in params.yaml names one.\n",
    FINANCE: "# What a run may spend, what machines cost, what a return on investment assumes.\n",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """The lines of a key and its value, with the comment above it."""

    key: str
    start: int
    end: int


def modeline(name: str) -> str:
    """The comment by which editors find the schema of a file."""
    return f"# yaml-language-server: $schema=schemas/{Path(name).stem}.json\n"


def migrate(path: Path) -> dict[str, str]:
    """The text of each of the four files; empty where `path` needs no migration.

    Raises:
        UserError: it is no YAML, or laid out so that its lines cannot be split.
    """
    file, lines = read_yaml_file(path), path.read_text(encoding="utf-8").splitlines(keepends=True)
    top, defaults = _blocks(file.root, lines), _child(file.root, "defaults")
    finance = (file.document.get("defaults") or {}).keys() & {*OWN_KEYS[FINANCE]}
    if not finance and top.keys() <= {*OWN_KEYS[PARAMS]}:
        return {}
    if finance and getattr(defaults, "flow_style", False):
        raise UserError(f"{path} cannot be split by lines: write `defaults` without braces")
    lines = _renamed(file.root, lines)
    inner = _blocks(defaults, lines, end=top["defaults"].end) if finance else {}
    texts = dict.fromkeys(FILES, "")
    for name in (POLICY, DEVICES):
        texts[name] = "".join(_text(lines, top[key]) for key in OWN_KEYS[name] if key in top)
    texts[FINANCE] = "".join(
        _dedented(_text(lines, inner[key])) for key in OWN_KEYS[FINANCE] if key in inner
    )
    gone = [top[key] for key in top if key not in OWN_KEYS[PARAMS]]
    gone += [inner[key] for key in inner if key in OWN_KEYS[FINANCE]]
    dropped = {number for block in gone for number in range(block.start, block.end)}
    kept = "".join(line for number, line in enumerate(lines) if number not in dropped)
    texts[PARAMS] = re.sub(
        r"^defaults:( *(#.*)?)\n(?=\S|\Z)", r"defaults: {}\1\n", kept, flags=re.M
    )
    found = {
        name: modeline(name) + _HEADINGS[name] + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        for name, text in texts.items()
    }
    _check(file, found)
    return found


def _check(file: YamlFile, found: Mapping[str, str]) -> None:
    """Refuse to split a file whose parts would not mean what the whole did."""
    before = _with_new_names(file.document)
    defaults = before.get("defaults") or {}
    expected = {
        POLICY: {key: before[key] for key in ("use_cases",) if key in before},
        DEVICES: {key: before[key] for key in ("devices",) if key in before},
        FINANCE: {key: defaults[key] for key in OWN_KEYS[FINANCE] if key in defaults},
        PARAMS: {
            "defaults": {k: v for k, v in defaults.items() if k not in OWN_KEYS[FINANCE]},
            "customers": before.get("customers"),
        },
    }
    for name, values in expected.items():
        try:
            after = yaml.safe_load(found[name]) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{file.path} cannot be split into {name} by lines: {error}") from None
        if after != {key: value for key, value in values.items() if key in after or value}:
            raise UserError(
                f"{file.path} cannot be split into {name} by lines: write every key on a line of "
                "its own, and no anchor (&NAME) in one section that another uses"
            )


def _with_new_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {RENAMED.get(key, key): _with_new_names(one) for key, one in value.items()}
    return [_with_new_names(one) for one in value] if isinstance(value, list) else value


def _renamed(node: yaml.Node | None, lines: list[str]) -> list[str]:
    """The lines with the keys of the past renamed where they stand, the last one first: a longer
    name moves what is to the right of it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            lines = _renamed(value, lines)
            new = RENAMED.get(key.value) if isinstance(key, yaml.ScalarNode) else None
            at, column = key.start_mark.line, key.start_mark.column
            if new and lines[at][column:].startswith(key.value):
                rest = lines[at][column + len(key.value) :]
                lines[at] = lines[at][:column] + new + rest
    elif isinstance(node, yaml.SequenceNode):
        for value in reversed(node.value):
            lines = _renamed(value, lines)
    return lines


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _blocks(node: yaml.Node | None, lines: list[str], end: int | None = None) -> dict[str, Block]:
    """The keys of a mapping, each with its lines, up to line `end` of the file."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    starts = [(key.value, _above(lines, key.start_mark)) for key, _ in node.value]
    ends = [start for _, start in starts[1:]] + [len(lines) if end is None else end]
    return {
        key: Block(key=key, start=start, end=stop)
        for (key, start), stop in zip(starts, ends, strict=True)
    }


def _above(lines: list[str], mark: Any) -> int:
    """Where the comment begins that stands right above a key, in the key's own column."""
    start: int = mark.line
    comment = " " * mark.column + "#"
    while start > 0 and lines[start - 1].startswith(comment):
        start -= 1
    return start


def _text(lines: list[str], block: Block) -> str:
    return "".join(lines[block.start : block.end])


def _dedented(text: str) -> str:
    """Without the indentation that it has below `defaults`."""
    first = next(line for line in text.splitlines() if line.strip())
    margin = len(first) - len(first.lstrip())
    return "".join(
        line[margin:] if not line[:margin].strip() else line
        for line in text.splitlines(keepends=True)
    )
