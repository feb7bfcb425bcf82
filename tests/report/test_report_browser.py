"""The report in a real browser: it loads, plays from the keyboard, and fits a phone.

Needs chromium; skipped with that reason where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from folders import PROMPTS, clips, noisy, sampled, searches

from osp_opt.cli.app import main

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

# Presses keys and waits for the videos to follow.
DRIVER = """
const key = (name) => document.body.dispatchEvent(
  new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
const shown = () => document.getElementById("frame").textContent;
const open = () => [...document.querySelectorAll(".scene")].filter((scene) => !scene.hidden);
const videos = () => [...open()[0].querySelectorAll("video")];
const settled = async () => {
  for (let i = 0; i < 2000; i++) {
    if (videos().every((video) => video.readyState >= 2 && !video.seeking)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
};
const pressed = () => document.getElementById("play").getAttribute("aria-pressed");
const seen = {scenes: document.querySelectorAll(".scene").length};
await settled();
seen.start = shown();
seen.videos = videos().map((video) => [video.videoWidth, Math.round(video.duration * 12)]);
key("ArrowRight"); key("ArrowRight"); await settled();
seen.right = shown();
seen.times = videos().map((video) => Math.floor(video.currentTime * 12));
key("End"); await settled();
seen.end = shown();
key("Home"); await settled();
seen.home = shown();
key(" ");
seen.playing = pressed();
key(" ");
seen.paused = pressed();
const before = open()[0];
key("n");
seen.open = open().length;
seen.changed = open()[0] !== before;
seen.unnamed = [...document.querySelectorAll("button, select, input, video, svg")].filter(
  (item) => !(item.getAttribute("aria-label") || item.closest("label") || item.textContent.trim())
).length;
return seen;
"""
# What reaches beyond the window, or would have to be scrolled sideways to be read.
TOO_WIDE = """
for (const item of document.querySelectorAll("details")) item.open = true;
const beyond = (item) => item.getBoundingClientRect().right > innerWidth + 1
  || item.scrollWidth > item.clientWidth + 1;
const wide = [...document.querySelectorAll("body *")].filter((item) =>
  !item.closest("[hidden], option, svg, script") && beyond(item)
  && getComputedStyle(item).display !== "inline"
).map((item) => `${item.tagName} ${item.className} ${item.scrollWidth} ${item.clientWidth}`);
const whole = document.scrollingElement;
return whole.scrollWidth > whole.clientWidth ? ["the page", ...wide] : wide;
"""
# How much of its card's inner width each plot takes, and the smallest text drawn in it.
PLOTS = """
return [...document.querySelectorAll(".plot svg")].map((svg) => {
  const style = getComputedStyle(svg.closest(".plot"));
  const inner = svg.closest(".plot").clientWidth
    - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const width = svg.getBoundingClientRect().width;
  const texts = [...svg.querySelectorAll("text")];
  const size = Math.min(...texts.map((text) => parseFloat(getComputedStyle(text).fontSize)));
  return [width / inner, size * width / svg.viewBox.baseVal.width];
});
"""
COLOURS = """
const style = getComputedStyle(document.body);
const level = (colour) => colour.match(/\\d+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0);
return [level(style.backgroundColor), level(style.color)];
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report of two runs of two prompts and of both searches."""
    searches(tmp_path / "work")
    made = clips()[:2]
    sampled(tmp_path / "work" / "baseline", made, PROMPTS[:2], seconds=6.0)
    sampled(tmp_path / "work" / "faster", [noisy(clip, 5) for clip in made], PROMPTS[:2])
    assert main(["report", str(tmp_path / "work")]) == 0
    return tmp_path / "work" / "report.html"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as found:
        yield found


def test_a_browser_shows_it(page: Path, browser: Browser) -> None:
    browser.open(page, 1400)
    seen = browser.run(DRIVER)
    assert (seen["scenes"], seen["start"]) == (2, "1 / 29")
    assert seen["videos"] == [[64, 29]] * 3, "baseline, candidate and difference are decoded"
    assert (seen["right"], seen["times"]) == ("3 / 29", [2, 2, 2]), "the videos are in step"
    assert (seen["end"], seen["home"]) == ("29 / 29", "1 / 29")
    assert (seen["playing"], seen["paused"]) == ("true", "false")
    assert (seen["open"], seen["changed"]) == (1, True)
    assert seen["unnamed"] == 0, "everything has a name for a screen reader"
    assert browser.run(TOO_WIDE) == []
    paper, ink = browser.run(COLOURS)
    assert paper > ink + 300

    browser.open(page, 390, dark=True)
    assert browser.run("return innerWidth;") == 390
    assert browser.run(TOO_WIDE) == [], "a phone does not scroll sideways"
    plots = browser.run(PLOTS)
    assert len(plots) == 4
    assert all(0.98 < width <= 1.001 and size >= 9 for width, size in plots), plots
    paper, ink = browser.run(COLOURS)
    assert ink > paper + 300
