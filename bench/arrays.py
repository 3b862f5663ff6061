"""An epoch's reads of clips and latents: from a folder, from S3, and from the cache of S3.

Run: python bench/arrays.py [--clips N] [--help]. Its last line is JSON, also written to
bench/results. S3 is moto's, in a process of its own on this machine: it stands for S3's protocol
and the client's work, not for a network's bandwidth or delay. Bytes are counted from the objects.
Clips are of smooth noise, compressed as the stage `clip` compresses them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from turbo_vaed.dataset.clip_arrays import create_clip_array  # noqa: E402
from turbo_vaed.distill.data import Clips  # noqa: E402
from turbo_vaed.storage.cache import LocalCache, local_cache  # noqa: E402
from turbo_vaed.storage.published import publish, stored_files  # noqa: E402

FRAMES, SIZE, BATCH = 17, 256, 8
LATENTS = (128, 3, 8, 8)


def write_data(folder: Path, clips: int) -> tuple[Path, Path]:
    import zarr

    rng = np.random.default_rng(0)
    group = zarr.open_group(str(folder / "clip/clips.zarr"), mode="w", zarr_format=3)
    video = create_clip_array(
        group, "video", clips=clips, shape=(FRAMES, SIZE, SIZE, 3), dtype="uint8",
        is_compressed=True,
    )  # fmt: skip
    group = zarr.open_group(str(folder / "encode/latents.zarr"), mode="w", zarr_format=3)
    latents = create_clip_array(
        group, "latents", clips=clips, shape=LATENTS, dtype="float32", is_compressed=True
    )
    ramp = np.linspace(0, 200, SIZE, dtype=np.float32)
    for i in range(clips):
        noise = rng.normal(0, 4, (FRAMES, SIZE, SIZE, 3))
        video[i] = np.clip(ramp[None, :, None, None] + noise + 20, 0, 255).astype(np.uint8)
        latents[i] = rng.normal(size=LATENTS).astype(np.float32)
    index = [{"index": i, "split": "train"} for i in range(clips)]
    (folder / "clip/clips.json").write_text(json.dumps({"clips": index}))
    (folder / "encode/latents.json").write_text(json.dumps({"compression": [8, 32, 32]}))
    return folder / "clip", folder / "encode"


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """moto's server in a process of its own; the URL of a bucket in it."""
    import boto3

    script = (
        "import sys, time; from moto.server import ThreadedMotoServer as S; "
        "s = S(ip_address='127.0.0.1', port=0, verbose=False); s.start(); "
        "print('http://%s:%d' % s.get_host_and_port(), flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    endpoint = server.stdout.readline().strip()
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "TURBO_VAED_ARRAY_CACHE": str(folder / "cache"),
    }
    try:
        urllib.request.urlopen(endpoint, timeout=30).close()
        boto3.client("s3").create_bucket(Bucket="bench")
        yield "s3://bench/arrays/demo"
    finally:
        server.terminate()
        server.wait()


def epoch(clips: str, latents: str) -> tuple[float, int, float]:
    """Seconds of an epoch's reads in a worker that holds nothing in memory, bytes of the chunks
    that came from S3, and a checksum."""
    data = Clips(clips=clips, latents=latents)
    count = len(data.index)
    fetched: list[int] = []
    write = LocalCache.write

    def counted(self: LocalCache, name: str, content: bytes) -> None:
        fetched.append(len(content))
        write(self, name, content)

    with patch.object(LocalCache, "write", counted):
        return _timed_epoch(data, count, fetched)


def _timed_epoch(data: Clips, count: int, fetched: list[int]) -> tuple[float, int, float]:
    began, total = time.perf_counter(), 0.0
    for step in range(count // BATCH):
        crops = data.draw_crops(split="train", size=SIZE, count=BATCH, seed=0, step=step)
        batch = data.read(crops, SIZE)
        total += float(batch.source.double().sum()) + float(batch.latents.double().sum())
        data.clear_memory()
    return time.perf_counter() - began, sum(fetched), total


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips, latents = write_data(folder, given.clips)
        with s3(folder) as prefix:
            upload, urls = timed(
                lambda: [publish(place, prefix, place.name) for place in (clips, latents)]
            )
            again, same = timed(
                lambda: [publish(place, prefix, place.name) for place in (clips, latents)]
            )
            assert same == urls
            stored = sum(one.size_bytes for url in urls for one in stored_files(url))
            seconds: dict[str, list[float]] = {"folder": [], "s3_cold": [], "s3_warm_cache": []}
            fetched: dict[str, list[int]] = {name: [] for name in seconds}
            wholes = set()
            for _ in range(given.repeats):
                local_cache()._objects.clear()
                for name_of, places in (
                    ("folder", [str(clips), str(latents)]), ("s3_cold", urls),
                    ("s3_warm_cache", urls),
                ):  # fmt: skip
                    took, size, whole = epoch(*places)
                    seconds[name_of].append(round(took, 3))
                    fetched[name_of].append(size)
                    wholes.add(whole)
            assert len(wholes) == 1, "the same numbers"
            kept = local_cache().bytes_kept()
    result = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
        },
        "s3": "moto on loopback, one process: no network",
        "clips": given.clips,
        "bytes_uploaded": stored,
        "seconds_to_upload": round(upload, 3),
        "seconds_to_find_it_uploaded": round(again, 3),
        "seconds_of_an_epoch": seconds,
        "bytes_from_s3_of_an_epoch": fetched,
        "bytes_in_the_cache": kept,
    }
    text = json.dumps(result, indent=1)
    (ROOT / "bench/results/arrays.json").write_text(text + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
