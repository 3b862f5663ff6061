"""Where a customer's outputs lie in DVC's remote: below a prefix of its own, so that they can be
kept, counted and erased apart from everybody else's.

The prefix is a remote of its own, `customer-NAME`, in .dvc/config.local; it has the URL, the
credentials and all other options of the checkout's default remote.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from configobj import ConfigObj
from dvc.config import Config

from turbo_vaed.errors import UserError
from turbo_vaed.runtime.files import write_text

_LOCAL = "config.local"


def name_of(customer: str) -> str:
    """Of the customer's remote; dvc.yaml names it, too."""
    return f"customer-{customer}"


def write(root: Path, customer: str) -> None:
    """Bring the customer's remote up to date with the default one.

    Raises:
        UserError: there is no default remote.
    """
    folder = root / ".dvc"
    default = _default(Config(str(folder)))
    section, url = f'remote "{name_of(customer)}"', f"remote://{default}/{customer}"
    path = folder / _LOCAL
    if _read(path).get(section, {}).get("url") == url:
        return
    with (folder / f".{_LOCAL}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = _read(path)
        config.setdefault(section, {})["url"] = url
        write_text(path, "\n".join(config.write()) + "\n")


def sections(root: Path, customer: str) -> dict[str, dict[str, str]]:
    """The customer's remote, and the default one that it is a prefix of, as a config of DVC has
    them.

    Raises:
        UserError: there is no default remote.
    """
    config = Config(str(root / ".dvc"))
    default, own = _default(config), name_of(customer)
    return {
        f'remote "{default}"': {
            key: str(value) for key, value in config["remote"][default].items()
        },
        f'remote "{own}"': {"url": f"remote://{default}/{customer}"},
    }


def _default(config: Config) -> str:
    name: str | None = config["core"].get("remote")
    if name is None:
        raise UserError(
            "DVC has no default remote, to which a run pushes what it has made; add one with: "
            "dvc remote add --default NAME URL"
        )
    return name


def _read(path: Path) -> ConfigObj:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return ConfigObj(lines)
