"""The page in a headless Chromium: what a person would see."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from tests import configs
from turbo_vaed.config import load
from turbo_vaed.report import media
from turbo_vaed.report.context import Failure, Registration, ReportContext
from turbo_vaed.report.page import write_report
from turbo_vaed.roi.inputs import Input

LOADED = """new Promise((done) => {
  const ready = () => [...document.querySelectorAll("video")].every((v) => v.readyState >= 2);
  const until = Date.now() + 20000;
  const look = () => ready() || Date.now() > until ? done(ready()) : setTimeout(look, 50);
  look();
})"""

CONTRAST = """(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes]
      .filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!text || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = element.namespaceURI.includes("svg") ? style.fill : style.color;
    const [a, b] = [light(numbers(ink)), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${text}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return bad;
})()"""


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, work: Path, gather: Callable[..., ReportContext]
) -> Path:
    context = gather(
        work,
        shots=5,
        registration=Registration(
            name="turbo-vaed-demo", version=3, alias="champion", mlflow_run="0a1b2c3d4e5f"
        ),
        lineage={"dvc_lock_sha256": "d0c1234", "python": "3.11.2"},
        assumptions=load.load(configs.FOLDER, "demo").roi,
        cost_of_poc=Input.exact("poc_usd", Decimal(1), "ledger"),
    )
    return write_report(context, tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.slow
def test_every_video_plays_without_a_network(browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate(LOADED)
    count = browser.evaluate("document.querySelectorAll('video').length")
    assert count == 5
    before = browser.evaluate("[...document.querySelectorAll('video')].map((v) => v.currentTime)")
    time.sleep(0.4)
    after = browser.evaluate("[...document.querySelectorAll('video')].map((v) => v.currentTime)")
    assert all(a != b for a, b in zip(before, after, strict=True))
    widths = browser.evaluate("[...document.querySelectorAll('video')].map((v) => v.videoWidth)")
    assert widths == [2 * (3 * 64 + 2 * 2)] * count
    assert browser.evaluate(
        "[...document.images].length >= 4 && "
        "[...document.images].every((i) => i.naturalWidth > 0 && i.alt)"
    )
    assert browser.errors() == []
    assert browser.requests()[0] == page.as_uri()
    assert {url.split(":")[0] for url in browser.requests()[1:]} <= {"data"}


def test_the_button_pauses_and_plays_all(browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate(LOADED)
    paused = "[...document.querySelectorAll('video')].map((v) => v.paused)"
    browser.evaluate("document.getElementById('play').click()")
    assert all(browser.evaluate(paused))
    browser.evaluate("document.getElementById('play').click()")
    assert not any(browser.evaluate(paused))


def first_frame(browser) -> np.ndarray:
    """The first frame of the page's first video as Chromium paints it: uint8 (H,W,3)."""
    uri = browser.evaluate(
        """new Promise((done) => {
          const video = document.querySelector("video");
          video.pause();
          video.addEventListener("seeked", () => {
            const canvas = document.createElement("canvas");
            canvas.width = video.videoWidth;
            canvas.height = video.videoHeight;
            canvas.getContext("2d").drawImage(video, 0, 0);
            done(canvas.toDataURL());
          }, {once: true});
          video.currentTime = 0.01;
        })"""
    )
    content = base64.b64decode(uri.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_video_shows_source_teacher_and_phone_in_this_order(
    browser, page: Path, work: Path, gather: Callable[..., ReportContext]
) -> None:
    browser.open(page)
    assert browser.evaluate(LOADED)
    picture = first_frame(browser)
    shot = gather(work, shots=5).shots[0]
    clips = [clip[0].astype(float) for clip in (shot.source, shot.teacher, shot.phone)
             if clip is not None]  # fmt: skip
    assert len(clips) == 3
    for i in range(3):
        shown = picture[::2, 2 * i * 66 : 2 * i * 66 + 128 : 2].astype(float)
        assert np.argmin([np.abs(shown - clip).mean() for clip in clips]) == i


def test_colours_are_those_of_the_clip(browser, tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (30, 90, 160), (230, 200, 40), (128, 128, 128)]
    video = np.zeros((4, 32, 32 * len(colours), 3), dtype=np.uint8)
    for i, colour in enumerate(colours):
        video[:, :, 32 * i : 32 * i + 32] = colour
    page = tmp_path / "page.html"
    uri = media.data_uri("video/mp4", media.encode_mp4(video, 10, crf=12))
    page.write_text(f'<video muted src="{uri}"></video>')
    browser.open(page)
    assert browser.evaluate(LOADED)
    picture = first_frame(browser)
    for i, colour in enumerate(colours):
        error = np.abs(picture[16, 32 * i + 16].astype(int) - colour)
        assert error[:2].max() <= 3, colour
        assert error[2] <= 12, colour  # Chromium itself cuts blue short


def test_the_figures_are_on_the_page(browser, page: Path, work: Path) -> None:
    browser.open(page)
    text = browser.evaluate("document.body.innerText")
    source = zarr.open_group(work / "clip" / "clips.zarr", mode="r")["video"][:]
    taught = zarr.open_group(work / "encode" / "latents.zarr", mode="r")["reconstruction"][:]
    frames = zarr.open_group(work / "gate" / "frames.zarr", mode="r")
    shown, tests = frames["video"][:], frames.attrs["indices"]

    def db(a: np.ndarray, b: np.ndarray) -> float:
        return float(-10 * np.log10(((a / 255.0 - b / 255.0) ** 2).mean()))

    teacher = [db(taught[i], source[i]) for i in tests]
    phone = [db(video, source[i]) for i, video in zip(tests, shown, strict=True)]
    kept = np.mean(phone) / np.mean(teacher)
    dollars = Decimal(599) * Decimal("0.08") / 3600
    headline = browser.evaluate("document.getElementById('headline').innerText")
    for figure in (f"{kept * 100:.1f} %", "23 %", f"${dollars:.4f}", "$95.00", "$1.00"):
        assert figure in headline
    for figure in (
        f"{min(phone):.2f} dB", f"{max(phone):.2f} dB", "4.3 MB", "0.42 \N{MULTIPLICATION SIGN}",
        "312 MB", "$0.0133", "Flicker (less is better)",
        f"{np.mean([0.3 / db for db in phone]):.4f}", f"{0.3 / min(phone):.4f}",
        "median 131.0 ms (95 % interval 128.5 to 141.5 ms), 5 runs",
        "2 good videos; a split by source needs at least 5.", "moov atom not found",
        "turbo-vaed-demo version 3, champion", "0a1b2c3d4e5f", "8c1d5e0f77", "d0c1234",
        "executorch 1.5.1, torch 2.13.0", "$0.08 per hour, local (params.yaml)",
        "demo-3f9c2a71b04d", "2 of 5 files fail", "of it wasted",
        "400 of 400 steps on 2 workers in bf16", "$0.00041",
        "Step 120, flicker: the error changes by 3.1 of 255",
        "2: 7 steps recomputed, 1 min 32 s and $0.002 wasted",
    ):  # fmt: skip
        assert figure in text, figure
    assert browser.evaluate("document.querySelectorAll('.tile.absent').length") == 0
    assert "not measured" not in text
    assert text.count("✓ passes") == 13 + 2  # checks, and packages
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") == 7


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_page_fits_its_window(browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser, page: Path, scheme: str) -> None:
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=wanted)
    browser.open(page)
    assert browser.evaluate(CONTRAST) == []
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_names_and_errors_from_outside_are_escaped(
    browser,
    tmp_path: Path,
    make_work: Callable[..., Path],
    gather: Callable[..., ReportContext],
) -> None:
    attack = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'&amp;"
    work = make_work(tmp_path / "work", paths=[f"{attack}.mp4"] * 12)
    page = write_report(
        gather(
            work,
            customer=attack,
            use_case=attack,
            run_id=attack,
            price=attack,
            failure=Failure(stage="register", error=attack),
            registration=Registration(
                name=attack, version=1, alias="candidate", reasons=[attack], mlflow_run=attack
            ),
            lineage={attack: attack},
        ),
        tmp_path / "report.html",
    )
    browser.open(page)
    assert browser.evaluate(LOADED)
    assert browser.evaluate("window.hacked === undefined")
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert browser.evaluate("document.querySelector('#failure pre').innerText") == attack
    assert browser.evaluate("document.body.innerText").count(attack) >= 10
    assert browser.errors() == []


def test_a_failed_run_shows_where_it_failed_and_what_was_reached(
    browser, work: Path, tmp_path: Path, gather: Callable[..., ReportContext]
) -> None:
    failure = Failure(stage="evaluate", error="the student puts out NaN\nfor test clips [3]")
    page = write_report(gather(work, failure=failure), tmp_path / "report.html")
    browser.open(page)
    assert browser.evaluate(LOADED)
    assert browser.evaluate("document.getElementById('failure').dataset.stage") == "evaluate"
    assert browser.evaluate("document.querySelector('#failure pre').innerText") == failure.error
    top = browser.evaluate("document.getElementById('failure').getBoundingClientRect().top")
    assert top < 500
    assert browser.evaluate("document.querySelectorAll('video').length") == 2
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") == 4
    assert browser.evaluate("document.getElementById('checks')") is None
    assert browser.evaluate("document.querySelectorAll('.tile.absent').length") == 4
    assert browser.errors() == []


def test_a_distillation_that_the_budget_stopped_has_a_note(
    browser, tmp_path: Path, make_work: Callable[..., Path], gather: Callable[..., ReportContext]
) -> None:
    work = make_work(tmp_path / "demo", stopped="budget")
    browser.open(write_report(gather(work), tmp_path / "report.html"))
    text = browser.evaluate("document.getElementById('stopped-early').innerText")
    assert "120 of 400" in text
    assert browser.evaluate("document.querySelectorAll('.hero .badge.warn').length") == 1
    end = browser.evaluate("document.getElementById('training-end').innerText")
    assert "reserve" in end
