"""Tags: what AWS would refuse is refused here, and both forms say the same."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.costs.tags import check_tag, ec2_tags, resource_tags
from turbo_vaed.errors import UserError

TAGS = {
    "turbo-vaed:project": "turbo-vaed",
    "turbo-vaed:customer": "acme",
    "turbo-vaed:run": "acme-3f9c2a71b04d",
    "turbo-vaed:stage": "distill",
}


def test_the_tags_of_a_stage() -> None:
    assert resource_tags(run="acme-3f9c2a71b04d", customer="acme", stage="distill") == TAGS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"customer": "a/b"}, "customer name 'a/b' is not allowed"),
        ({"customer": ""}, "customer name"),
        ({"run": ""}, "turbo-vaed:run.*expected 1 to 256"),
        ({"run": "x" * 257}, "257 characters"),
        ({"run": " x"}, "without spaces around"),
        ({"run": "a$b"}, "allowed are"),
        ({"run": "a\nb"}, "allowed are"),
        ({"stage": "a&b"}, "turbo-vaed:stage.*allowed are"),
    ],
)
def test_values_that_aws_would_refuse_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resource_tags(**{"run": "r", "customer": "acme", "stage": "clip", **changes})


@pytest.mark.parametrize("key", ["", "aws:run", "AWS:run", "k" * 129, "a*b"])
def test_keys_that_aws_would_refuse_are_refused(key: str) -> None:
    with pytest.raises(UserError, match="tag"):
        check_tag(key, "value")


def test_the_longest_tag_that_aws_accepts() -> None:
    check_tag("k" * 128, "v" * 256)


@given(st.text("abcÄ7 _.:/=+-@", min_size=1, max_size=40).filter(lambda t: t == t.strip()))
def test_ec2_tags_keep_every_character(run: str) -> None:
    tags = resource_tags(run=run, customer="acme", stage="clip")
    assert {tag["Key"]: tag["Value"] for tag in ec2_tags(tags)} == tags


def test_s3_accepts_the_tags_for_a_bucket(s3_url: str) -> None:
    s3, bucket = boto3.client("s3"), s3_url.split("/")[2]
    tags = resource_tags(run="a b+c=d", customer="acme", stage="distill")
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": ec2_tags(tags)})
    found = s3.get_bucket_tagging(Bucket=bucket)
    assert {tag["Key"]: tag["Value"] for tag in found["TagSet"]} == tags
