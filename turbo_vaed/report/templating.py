"""Pages from the templates of this package: every text escaped, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = "templates"


def environment() -> Environment:
    """Templates in which a name that is missing is an error and every text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("turbo_vaed.report", _TEMPLATES), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def source(found: Environment, name: str) -> str:
    """The text of a file beside the templates, such as style.css."""
    assert found.loader is not None, "environment() gives one"
    return found.loader.get_source(found, name)[0]


def rendered(name: str, *styles: str, **view: Any) -> str:
    """A page without script from a template that takes `style`, the style sheets one by one."""
    from markupsafe import Markup

    found = environment()
    style = Markup("\n").join(Markup(source(found, one)) for one in styles)  # ours, not a user's
    return found.get_template(name).render(style=style, **view)


def write_whole(path: Path, text: str) -> Path:
    """Write the text to `path`, in full or not at all, and return it; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
