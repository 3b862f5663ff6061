"""The place of the pages: a folder and an S3 (moto's, over HTTP) that behave alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from turbo_vaed.errors import Unreachable, UserError
from turbo_vaed.report.fleet.site import Site, read_all, site_at


@pytest.fixture(params=["folder", "bucket"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "folder":
        return site_at(str(tmp_path / "site"))
    url: str = request.getfixturevalue("s3_url")
    return site_at(url)


def test_an_object_is_read_as_it_was_written(site: Site) -> None:
    assert site.names("records/") == {}
    assert site.write("records/acme.last.json", b"{}")
    assert site.write("index.html", b"a page")
    assert site.read("records/acme.last.json") == b"{}"
    assert list(site.names("records/")) == ["records/acme.last.json"]
    site.remove("records/acme.last.json")
    site.remove("records/acme.last.json")
    assert site.names("records/") == {}
    with pytest.raises(FileNotFoundError):
        site.read("records/acme.last.json")


def test_only_what_differs_is_written_and_is_seen_to(site: Site) -> None:
    site.write("a.html", b"one")
    before = site.names("")
    assert not site.write("a.html", b"one")
    assert site.names("") == before
    assert site.write("a.html", b"two")
    assert site.names("").keys() == before.keys() and site.names("") != before
    assert site.read("a.html") == b"two"


def test_objects_that_are_gone_are_left_out(site: Site) -> None:
    site.write("a", b"1")
    site.write("b/c", b"2")
    assert read_all(site, ["a", "b/c", "gone"]) == {"a": b"1", "b/c": b"2"}


def test_a_browser_gets_pages_as_pages(s3_url: str) -> None:
    import boto3

    site_at(s3_url).write("customers/acme/costs.html", "ä".encode())
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    found = boto3.client("s3").head_object(Bucket=bucket, Key=f"{prefix}/customers/acme/costs.html")
    assert found["ContentType"] == "text/html; charset=utf-8"
    assert found["Metadata"]["sha256"] == hashlib.sha256("ä".encode()).hexdigest()


def test_an_object_by_another_writer_is_replaced(s3_url: str) -> None:
    """It has no digest of ours, even if its bytes were the same."""
    import boto3

    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"one")
    assert site_at(s3_url).write("a", b"one")


def test_a_bucket_that_is_not_there_is_a_users_mistake(s3_url: str) -> None:
    with pytest.raises(UserError, match="no-such-bucket"):
        site_at("s3://no-such-bucket/x").write("a", b"")


def test_an_s3_that_does_not_answer_is_unreachable(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unreachable, match="S3 failed"):
        site_at(s3_url).read("a")


@pytest.mark.parametrize("url", ["s3://", "ftp://host/x"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="TURBO_VAED_SITE"):
        site_at(url)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("a file")
    with pytest.raises(Unreachable, match="site"):
        site_at(str(tmp_path / "site")).write("a.html", b"")
