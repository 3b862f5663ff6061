"""The site of the docs: it has what pages link, and a link that leads nowhere stops its build."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from mkdocs.commands.build import build as mkdocs_build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(tmp_path):
    """`build(text)` -> whether a strict build of one page with this text succeeded."""
    for name in ("mkdocs.yml", "scripts/docs_hooks.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    config = (tmp_path / "mkdocs.yml").read_text()
    begin, end = config.index("nav:\n"), config.index("markdown_extensions:")
    nav = "nav: [index.md, contributing.md, changelog.md, demo-teacher.md, page.md]\n"
    (tmp_path / "mkdocs.yml").write_text(config[:begin] + nav + config[end:])
    teacher = "assets/teachers/tiny-ltx/README.md"
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", teacher, "docs/page.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("# Title\n")
    (tmp_path / "code.py").write_text("print()\n")

    def run(text: str) -> bool:
        (tmp_path / "docs" / "page.md").write_text(f"# Page\n\n## Part\n\n{text}\n")
        with (tmp_path / "mkdocs.yml").open("rb") as file:
            config = load_config(file, strict=True)
        try:
            mkdocs_build(config)
        except Abort:
            return False
        return True

    return run


def test_every_linked_page_is_on_the_site(build, tmp_path):
    (tmp_path / "README.md").write_text("# Title\n\n[a page](docs/page.md#part)\n")
    assert build("[code](../code.py), [a folder](../scripts), [start](../README.md)")
    site = tmp_path / "site"
    assert (site / "repository" / "code.py").read_text() == "print()\n"
    assert 'href="page/#part"' in (site / "index.html").read_text()
    page = (site / "page" / "index.html").read_text()
    assert 'href="../repository/code.py"' in page
    assert "a folder" in page


@pytest.mark.parametrize(
    "link", ["nowhere.md", "../nowhere.py", "../README.md#nowhere", "#nowhere", "/page.md"]
)
def test_a_link_that_leads_nowhere_stops_the_build(build, link):
    assert not build(f"[text]({link})")


def test_architecture_lists_packages_in_the_order_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    listed = re.findall(
        r"(?m)^      \(?([a-z_]+)(?:/|\.py) ", (ROOT / "docs" / "architecture.md").read_text()
    )
    assert listed == [layer.removeprefix("turbo_vaed.") for layer in layers]
