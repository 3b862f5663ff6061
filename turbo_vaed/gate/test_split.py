"""The test split: its clips, latents and evaluation, as stages after `distill` read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.dataset.clip_arrays import ClipArray
from turbo_vaed.dataset.clip_store import read_description
from turbo_vaed.errors import CorruptFile
from turbo_vaed.export.sampling import spread_out
from turbo_vaed.runtime.files import read_json
from turbo_vaed.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from turbo_vaed.models import TurboVaedDecoder


@dataclass(frozen=True, kw_only=True)
class TestSplit:
    """The test clips, in the order of clips.json; a clip is read on access."""

    clips: tuple[Mapping[str, Any], ...]
    """Their entries in clips.json."""
    _video: ClipArray
    _reconstruction: ClipArray
    _latents: ClipArray

    def source(self, index: int) -> NDArray[np.uint8]:
        """The clip with this index in clips.zarr, (T, H, W, 3) uint8."""
        return self._video[index]

    def reconstruction(self, index: int) -> NDArray[np.uint8]:
        """What the teacher made of it, (T, H, W, 3) uint8."""
        return self._reconstruction[index]

    def latents(self, indices: list[int]) -> NDArray[np.float32]:
        """Latents of the clips with these indices, (n, C, t, h, w) float32."""
        import numpy as np

        return np.stack([self._latents[index] for index in indices])

    def write_latents(self, folder: Path) -> Path:
        """Write `folder/latents.npy`, (n, C, t, h, w) float32 of all test clips; returns it."""
        import numpy as np

        path = folder / "latents.npy"
        np.save(path, self.latents(self.indices))
        return path

    @property
    def indices(self) -> list[int]:
        """Indices of the test clips in clips.zarr."""
        return [int(clip["index"]) for clip in self.clips]

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """(1, C, t, h, w), of one clip."""
        _, c, t, h, w = self._latents.shape
        return (1, int(c), int(t), int(h), int(w))

    @classmethod
    def open(cls, workspace: Workspace) -> TestSplit:
        """Open clips and latents of a customer.

        Raises:
            CorruptFile: an array is missing, or does not belong to the clips.
        """
        clips = read_description(workspace.folder("clip") / "clips.json")["clips"]
        video = _array(workspace.folder("clip") / "clips.zarr", "video")
        store = workspace.folder("encode") / "latents.zarr"
        reconstruction, latents = _array(store, "reconstruction"), _array(store, "latents")
        if not (video.shape[0] == len(clips) and video.ndim == 5 and video.shape[-1] == 3):
            raise CorruptFile(
                f"clips.zarr holds {video.shape}, clips.json {len(clips)} clips; "
                "run the stage `clip` again"
            )
        if reconstruction.shape != video.shape or latents.shape[:1] != video.shape[:1]:
            raise CorruptFile(
                f"{store} holds reconstructions {reconstruction.shape} and latents "
                f"{latents.shape} for clips {video.shape}; run the stage `encode` again"
            )
        tests = tuple(clip for clip in clips if clip["split"] == "test")
        if not tests:
            raise CorruptFile("clips.json has no test clip; run the stage `clip` again")
        return cls(clips=tests, _video=video, _reconstruction=reconstruction, _latents=latents)


def read_evaluation(workspace: Workspace, split: TestSplit) -> dict[str, Any]:
    """The content of evaluate/evaluation.json.

    Raises:
        CorruptFile: it is missing or damaged, or about other clips than the split's.
    """
    path = workspace.folder("evaluate") / "evaluation.json"
    try:
        document = read_json(path)
        indices = [clip["index"] for clip in document["clips"]]
        document["teacher"]["psnr"]["mean"], document["worst_share"]
        [(clip["path"], clip["teacher"]["detail"]) for clip in document["clips"]]
    except (OSError, CorruptFile, KeyError, TypeError) as error:
        raise CorruptFile(f"{path} is not a whole evaluation ({error}); evaluate again") from None
    if indices != split.indices:
        raise CorruptFile(f"{path} is about other clips than clips.json; evaluate again")
    return document


def training_latents(workspace: Workspace, most: int) -> NDArray[np.float32]:
    """Latents of training clips, (n, C, t, h, w), n at most `most`, spread over all of them.

    Raises:
        CorruptFile: clips or latents are missing or damaged.
    """
    import numpy as np

    clips = read_description(workspace.folder("clip") / "clips.json")["clips"]
    latents = _array(workspace.folder("encode") / "latents.zarr", "latents")
    indices = [int(clip["index"]) for clip in clips if clip["split"] == "train"]
    if not indices:
        raise CorruptFile("clips.json has no training clip; run the stage `clip` again")
    return np.stack([latents[index] for index in spread_out(indices, most)])


def load_student(workspace: Workspace) -> TurboVaedDecoder:
    """The student of `distill`, ready to decode.

    Raises:
        CorruptFile: it is missing or damaged.
    """
    from turbo_vaed.models import load_decoder

    try:
        return load_decoder(workspace.folder("distill") / "student").eval()
    except (FileNotFoundError, ValueError) as error:
        raise CorruptFile(f"{error}; run the stage `distill` again") from error


def _array(store: Path, name: str) -> ClipArray:
    return ClipArray(str(store), name, remedy="run its stage again")
