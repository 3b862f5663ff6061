"""Pages from the templates of this package, with every text escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """The text of a file among the templates, such as style.css."""
    assert found.loader is not None, "environment() gives one"
    return found.loader.get_source(found, name)[0]


def rendered(name: str, *styles: str, **view: Any) -> str:
    """A page without script from a template that takes `style`, the style sheets one by one."""
    from markupsafe import Markup

    found = environment()
    style = Markup("\n").join(Markup(source(found, one)) for one in styles)  # ours, not a user's
    return found.get_template(name).render(style=style, **view)
