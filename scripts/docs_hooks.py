"""Hooks of mkdocs: pages may link what lies outside docs/, as they do in the repository.

Some files elsewhere become pages, and any other file that a page links becomes a file of the site.
A link that leads nowhere stays as it is, for mkdocs' strict build to refuse.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "assets/teachers/tiny-ltx/README.md": "demo-teacher.md",
}
"""Files of the repository that are pages, and what they are called on the site."""
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """The page with its links as the site has them."""
    here = page.file.src_uri
    folder = posixpath.dirname(_SOURCES.get(here, f"docs/{here}"))

    def relinked(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        source = posixpath.normpath(posixpath.join(folder, target))
        if "://" in target or not (ROOT / source).exists():
            return match.group()
        if (ROOT / source).is_dir():  # the site has no page for a folder
            return str(text)
        there = PAGES.get(source) or source.removeprefix("docs/")
        if there == source:
            there = f"repository/{source}"
            if files.get_file_from_path(there) is None:
                files.append(File.generated(config, there, abs_src_path=str(ROOT / source)))
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(here))}{anchor or ''})"

    return _LINK.sub(relinked, markdown)
