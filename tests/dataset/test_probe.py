from __future__ import annotations

import errno
import os
import re
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from turbo_vaed.dataset.probe import VideoFacts, probe_video


def probe(path: Path) -> VideoFacts:
    return probe_video(path, timeout_seconds=60)


def test_a_good_video_has_its_facts(tmp_path: Path, make_video) -> None:
    facts = probe(make_video(tmp_path / "odd size.mp4", frames=20, width=161, height=99, fps=10))
    assert facts.error is None
    assert (facts.width, facts.height, facts.frames) == (161, 99, 20)
    assert (facts.codec, facts.fps, facts.seconds) == ("h264", 10.0, 2.0)
    assert "mp4" in str(facts.container)
    assert facts.black_share == 0 and facts.frozen_share == 0
    assert 0.2 < facts.brightness < 0.8 and 0.001 < facts.motion < 0.5
    assert len(facts.phash) == 16


def test_black_and_frozen_videos_are_measured(tmp_path: Path, make_video) -> None:
    black = probe(make_video(tmp_path / "black.mp4", look="black"))
    frozen = probe(make_video(tmp_path / "frozen.mp4", look="frozen"))
    assert black.error is None and frozen.error is None
    assert (black.black_share, frozen.black_share) == (1.0, 0.0)
    assert black.brightness < 0.02
    assert frozen.frozen_share > 0.9 and frozen.motion < 0.001


def test_the_perceptual_hash_survives_coding_and_differs_between_scenes(
    tmp_path: Path, make_video
) -> None:
    fine, coarse, other = (
        probe(make_video(tmp_path / f"{seed}{crf}.mp4", seed=seed, options={"crf": crf})).phash
        for seed, crf in ((1, "10"), (1, "32"), (2, "10"))
    )

    def distance(a: str, b: str) -> int:
        return (int(a, 16) ^ int(b, 16)).bit_count()

    assert distance(fine, coarse) <= 6 < 12 <= distance(fine, other)


def test_a_truncated_video_is_reported(tmp_path: Path, make_video) -> None:
    """With its index lost nothing decodes; with the index in front a part does, and is named."""
    behind = make_video(tmp_path / "behind.mp4")
    front = make_video(tmp_path / "front.mp4", container_options={"movflags": "faststart"})
    for path in (behind, front):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    facts = probe(behind)
    assert "decode" in facts.error and facts.frames is None
    facts = probe(front)
    assert 0 < facts.frames < 30
    assert f"after {facts.frames} frames" in facts.error or "cut short" in facts.error


def test_an_avi_that_ends_early_is_reported_by_its_frame_count(tmp_path: Path, make_video) -> None:
    """AVI has no end mark: only its header knows how many frames there were."""
    path = make_video(tmp_path / "v.avi")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    facts = probe(path)
    assert 0 < facts.frames < 30 and f"{facts.frames} of 30" in facts.error


@pytest.mark.parametrize("content", [b"a letter, not a video\n" * 200, b"\x00" * 5000])
def test_a_file_that_is_not_a_video_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "letter.mp4").write_bytes(content)
    facts = probe(tmp_path / "letter.mp4")
    assert "decode" in facts.error and facts.frames is None


def test_an_empty_and_a_missing_file_are_reported(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").touch()
    assert "0 bytes" in probe(tmp_path / "zero.mp4").error
    assert os.strerror(errno.ENOENT) in probe(tmp_path / "none.mp4").error


def test_an_audio_only_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "talk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        silence.rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    assert "only audio" in probe(path).error


def test_a_playlist_cannot_reach_another_customers_video(tmp_path: Path, make_video) -> None:
    make_video(tmp_path / "other.ts")
    playlist = tmp_path / "mine.m3u8"
    playlist.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nother.ts\n#EXT-X-ENDLIST\n"
    )
    with av.open(str(playlist)) as container:
        assert container.streams.video, "FFmpeg alone follows it"
    facts = probe(playlist)
    assert "decode" in facts.error and facts.frames is None


def test_a_video_that_changes_size_is_reported(tmp_path: Path, make_video) -> None:
    first = make_video(tmp_path / "a.ts", width=160)
    second = make_video(tmp_path / "b.ts", width=192)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    assert re.search(r"frame 30: 160x144 .*192x144", probe(both).error)


@pytest.mark.slow
def test_a_probe_that_hangs_is_killed(tmp_path: Path) -> None:
    video, pid = tmp_path / "v.mp4", tmp_path / "pid"
    video.write_bytes(b"x")
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(120)"
    start = time.monotonic()
    facts = probe_video(video, timeout_seconds=5, child=[sys.executable, "-S", "-c", code])
    assert facts == VideoFacts(error=facts.error) and "stopped after 5 s" in facts.error
    assert time.monotonic() - start < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "crashed (SIGABRT)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed (SIGKILL)"),
        ("raise SystemExit('no memory')", "exit code 1: no memory"),
        ("pass", "no facts"),
        ("import sys; open(sys.argv[1], 'w').write('nonsense')", "no facts"),
    ],
)
def test_a_probe_that_crashes_is_reported_in_its_row(
    tmp_path: Path, code: str, message: str
) -> None:
    (tmp_path / "v.mp4").write_bytes(b"x")
    child = [sys.executable, "-S", "-c", code]
    assert message in probe_video(tmp_path / "v.mp4", timeout_seconds=60, child=child).error
