"""The tags that split AWS's bill by customer and run, in the forms of its APIs.

What starts machines, volumes or buckets for a run puts `ec2_tags(resource_tags(...))` on them;
what only the project as a whole can be billed for (a shared bucket, a database) carries `PROJECT`
alone. `turbo_vaed.costs.bill` asks for the bill by these keys, once they are activated as cost
allocation tags (docs/costs.md).

Checkpoints in S3 are not tagged. S3 is billed by bucket, so that tags of objects are never in the
bill; they would want s3:PutObjectTagging of every role, and some other S3s refuse a put that has
them, which would cost a run its checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from turbo_vaed.config.schema import check_customer_name
from turbo_vaed.errors import UserError

PROJECT, CUSTOMER, RUN, STAGE = (
    f"turbo-vaed:{name}" for name in ("project", "customer", "run", "stage")
)
PROJECT_VALUE = "turbo-vaed"

KEY_LENGTH, VALUE_LENGTH = 128, 256
"""Characters that AWS takes."""
_ALLOWED = re.compile(r"[\w .:/=+@-]*")
_ALLOWED_SAID = "letters, digits, spaces and _ . : / = + - @"


def resource_tags(*, run: str, customer: str, stage: str) -> dict[str, str]:
    """The tags of what AWS bills for one stage of a run.

    Raises:
        UserError: no customer's name, or a run or stage that AWS does not take as a tag.
    """
    tags = {
        PROJECT: PROJECT_VALUE,
        CUSTOMER: check_customer_name(customer),
        RUN: run,
        STAGE: stage,
    }
    for key, value in tags.items():
        check_tag(key, value)
    return tags


def check_tag(key: str, value: str) -> None:
    """Whether every AWS service takes it, EC2 and S3 among them.

    Raises:
        UserError: it is empty, too long, or has another character; `aws:` is AWS's own.
    """
    if key.lower().startswith("aws:"):
        raise UserError(f"tag {key!r}: keys that begin with aws: are AWS's own; choose another")
    for what, text, most in (("key", key, KEY_LENGTH), ("value", value, VALUE_LENGTH)):
        if not text.strip() or text != text.strip() or len(text) > most:
            raise UserError(
                f"tag {key!r}: its {what} is {text!r} ({len(text)} characters); expected 1 to "
                f"{most} without spaces around them"
            )
        if not _ALLOWED.fullmatch(text):
            raise UserError(f"tag {key!r}: its {what} is {text!r}; allowed are {_ALLOWED_SAID}")


def ec2_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """As EC2's `Tags` and S3's `TagSet` of a bucket want them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]
