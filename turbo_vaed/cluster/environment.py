"""Where a team's cluster stands on AWS: a small file that infra/terraform writes, or its owner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from turbo_vaed.errors import UserError

FILE = Path("infra/ray/environment.yaml")
"""In a checkout; `environment.example.yaml` beside it says what belongs there."""
VOLUME_GIB = 120
HEAD_PORT = 6379


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LaunchTemplate(_Strict):
    """What a machine is started from: image, instance profile, and what else its owner wants."""

    id: Annotated[str, Field(pattern=r"^lt-[0-9a-z]+$")]
    version: Annotated[str, Field(pattern=r"^([1-9][0-9]*|\$Latest|\$Default)$")]


class Archive(_Strict):
    """A pinned archive that a worker is set up from where its image does not have everything."""

    url: Annotated[str, Field(pattern=r"^s3://[^/]+/.+")]
    """Of a .tar.gz with an executable `setup` at its top, which needs no network but S3's."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Controller(_Strict):
    """The small on-demand machine that holds driver, Prefect worker and Ray head."""

    launch_template: LaunchTemplate
    instance_type: str = "m7i.large"
    volume_gib: Annotated[int, Field(ge=20)] = 60


class Environment(_Strict):
    """The account's part of a cluster's configuration."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    """Of the cluster; it is the value of a tag on all that belongs to it."""
    region: str
    launch_template: LaunchTemplate
    """Of workers."""
    subnets: Annotated[dict[str, str], Field(min_length=1)]
    """By availability zone, all in one VPC."""
    security_groups: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    """Of workers and controller; without one Ray would make its own, with SSH open to the world."""
    token_secret: str
    """Name or ARN of the secret in AWS Secrets Manager that holds Ray's token."""
    root_device: str = "/dev/sda1"
    """Of both images: `/dev/xvda` of Amazon Linux."""
    archive: Archive | None = None
    """None: the image has everything (`/opt/turbo-vaed/.venv`)."""
    volume_gib: Annotated[int, Field(ge=20)] = VOLUME_GIB
    max_hours: Annotated[float, Field(gt=0)] = 72
    """After which a worker ends itself, whatever has become of those who would end it."""
    """Of a worker: encrypted, gp3."""
    max_workers: Annotated[int, Field(ge=1, le=64)] = 4
    """At once, of all types together."""
    idle_minutes: Annotated[float, Field(gt=0)] = 5.0
    """After which a worker without work is ended."""
    controller: Controller

    @model_validator(mode="after")
    def _named_well(self) -> Environment:
        for zone, subnet in self.subnets.items():
            if not zone.startswith(self.region) or not subnet.startswith("subnet-"):
                raise ValueError(
                    f"subnets: {zone}: {subnet}; expected a zone of {self.region} and a subnet-…"
                )
        for group in self.security_groups:
            if not group.startswith("sg-"):
                raise ValueError(f"security_groups: {group}; expected sg-…")
        return self


def read(root: Path) -> Environment:
    """The environment of a checkout's cluster.

    Raises:
        UserError: there is no such file, or it is not valid.
    """
    path = root / FILE
    try:
        return Environment.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError:
        example = path.with_name("environment.example.yaml")
        raise UserError(
            f"no {path}: it says where machines of EC2 are started; Terraform writes it, or copy "
            f"{example}"
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        found = (
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}"
            for one in error.errors()
        )
        raise UserError(f"{path}: {'; '.join(found)}") from None


def volume_gib(root: Path) -> int:
    """Of a worker's volume; the default where no cluster is described.

    Raises:
        UserError: as `read`, of a file that is there.
    """
    return read(root).volume_gib if (root / FILE).exists() else VOLUME_GIB
