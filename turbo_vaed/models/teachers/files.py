"""A teacher on disk: config.json and safetensors, the Hugging Face layout; nothing pickled.

config.json
diffusion_pytorch_model.safetensors            or, where it is split,
diffusion_pytorch_model.safetensors.index.json and the files that it names
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.models.checkpoint import PICKLES
from turbo_vaed.runtime.files import read_json, sha256_file

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
REMEDY = "restore the teacher's folder, or point encode.teacher_weights at another"


@dataclass(frozen=True, kw_only=True)
class TeacherFiles:
    """The files of one teacher; the weights are opened on first use."""

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    """One file, or the shards in the order of their names."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name, from the headers alone."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.weights:
            with _opened(path) as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return found

    def parameters(self, *prefixes: str) -> int:
        """How many numbers the tensors have whose names begin so."""
        return sum(math.prod(s) for name, s in self.shapes().items() if name.startswith(prefixes))

    def tensors(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Tensors by their names, in the precision of the file; all of them by default."""
        found: dict[str, Tensor] = {}
        for path in self.weights:
            with _opened(path) as file:
                here = [n for n in file.keys() if names is None or n in names]  # noqa: SIM118
                found |= {name: file.get_tensor(name) for name in here}
        if missing := sorted(set(names or ()) - found.keys()):
            raise CorruptFile(f"{self.folder} has no weights {', '.join(missing)}; {REMEDY}")
        return found

    def sha256(self) -> str:
        """Of the weights file; of the digests of all, in the order of their names, if several."""
        digests = [sha256_file(path) for path in self.weights]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def read_files(
    folder: Path,
    *,
    class_name: str | None,
    needed: Sequence[str] = (),
    weights_name: str = WEIGHTS_NAME,
    published_config: Mapping[str, Any] | None = None,
) -> TeacherFiles:
    """The config of a teacher, checked, and where its weights are.

    Args:
        folder: config.json and weights.
        class_name: what `_class_name` in the config must be; None for a config without one.
        needed: keys that the config must have.
        weights_name: of the one file; its index is `weights_name`.index.json.
        published_config: where there is no config.json, for weights published without one.

    Raises:
        UserError: there is no such folder, it holds pickled weights, or another family's config.
        CorruptFile: a file is missing or is not what its name says.
    """
    if not folder.is_dir():
        raise UserError(
            f"the teacher's folder {folder} does not exist; put {CONFIG_NAME} and {weights_name} "
            "there, or download them with: turbo-vaed teacher fetch"
        )
    if pickled := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise UserError(
            f"{folder} holds pickled weights ({', '.join(pickled)}), which can run code when they "
            f"are read: take the {weights_name} of the same model and delete them; where there is "
            "none, convert them with safetensors on a machine that you can lose"
        )
    path = folder / CONFIG_NAME
    config = published_config
    if config is None or path.exists():
        config = _read_config(path, class_name, needed)
    return TeacherFiles(folder=folder, config=config, weights=_weight_paths(folder / weights_name))


def _read_config(path: Path, class_name: str | None, needed: Sequence[str]) -> dict[str, Any]:
    config = _read_json(path)
    if (found := config.get("_class_name")) != class_name and class_name is not None:
        raise UserError(
            f"{path} is not the config of a {class_name}, but of {found or 'an unnamed class'}; "
            "name the family that it belongs to in encode.teacher_family, or " + REMEDY
        )
    if missing := [key for key in needed if config.get(key) is None]:
        raise CorruptFile(f"{path} lacks {', '.join(missing)}; {REMEDY}")
    return config


def _weight_paths(whole: Path) -> tuple[Path, ...]:
    index = whole.with_name(f"{whole.name}.index.json")
    if whole.is_file() or not index.is_file():
        paths = [whole]
    else:
        listed = _read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CorruptFile(f"{index} has no weight_map; {REMEDY}")
        names = sorted(set(map(str, listed.values())))
        if strange := [n for n in names if Path(n).name != n or not n.endswith(".safetensors")]:
            raise CorruptFile(f"{index} names {strange[0]}, which is no safetensors file beside it")
        paths = [whole.with_name(name) for name in names]
    for path in paths:
        with _opened(path):
            pass
    return tuple(paths)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, remedy=REMEDY)
    except OSError as error:
        raise CorruptFile(f"the teacher's {path} cannot be read ({error}); {REMEDY}") from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CorruptFile(
            f"the teacher's weights {path} cannot be read ({error}); {REMEDY}"
        ) from None
