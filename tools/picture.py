"""The moving picture of the README: original and faster videos side by side.

    python -m tools.picture BASELINE FASTER docs/demo.webp

BASELINE and FASTER are two folders that `osp-opt sample` made of the same prompts and seeds; the
suffix of the picture chooses its format (.webp or .gif).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from PIL import Image, ImageDraw, ImageFont

from osp_opt.base.artifacts import atomic_write_bytes
from osp_opt.base.video import Frames
from osp_opt.evaluate.pairs import pair_videos
from osp_opt.generate.manifest import Take, VideoFile, open_take

SCALE = 2  # of the pixels: the bundled model's videos are small
GAP = 6  # pixels
MARGIN = 38  # above the videos, for two lines of text
MOST = 4  # prompts, one beside the other
LIMIT = 400_000  # bytes of a picture that people load with a README
TEXT, PAPER = (28, 31, 36), (251, 250, 247)


def compose(rows: Sequence[Sequence[Frames]], titles: Sequence[str]) -> list[Image.Image]:
    """One picture per frame: a row of videos under each title.

    rows: videos uint8 [t h w c] of one shape.
    """
    t, h, w, _ = rows[0][0].shape
    cell_h, cell_w = h * SCALE + GAP, w * SCALE + GAP
    size = (GAP + cell_w * len(rows[0]), (MARGIN + cell_h) * len(rows))
    font = ImageFont.load_default(size=13)
    pictures = []
    for frame in range(t):
        picture = Image.new("RGB", size, PAPER)
        pen = ImageDraw.Draw(picture)
        for r, (row, title) in enumerate(zip(rows, titles, strict=True)):
            top = r * (MARGIN + cell_h)
            pen.text((GAP, top + 2), title, fill=TEXT, font=font)
            for c, video in enumerate(row):
                image = Image.fromarray(video[frame]).resize((w * SCALE, h * SCALE), Image.NEAREST)
                picture.paste(image, (GAP + c * cell_w, top + MARGIN))
        pictures.append(picture)
    return pictures


def encode(pictures: Sequence[Image.Image], fps: float, suffix: str) -> bytes:
    """The animation, looping for ever. `suffix` is .webp or .gif."""
    buffer = io.BytesIO()
    first, *others = pictures
    first.save(
        buffer,
        format=suffix.removeprefix("."),
        save_all=True,
        append_images=others,
        duration=round(1000 / fps),
        loop=0,
        quality=75,
        method=6,
    )
    return buffer.getvalue()


def title_of(name: str, take: Take, own: Sequence[VideoFile]) -> str:
    """What a row shows, in two lines."""
    seconds = [video.seconds for video in own if video.seconds is not None]
    steps = len(take.timesteps) or "?"
    how = f"{steps} steps" + (", blocks reused" if (take.settings or {}).get("cache") else "")
    return f"{name}\n{how}" + (f", {median(seconds):.1f} s a video" if seconds else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("faster", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    baseline = open_take(args.baseline, "BASELINE")
    faster = open_take(args.faster, "FASTER")
    pairs = pair_videos(baseline, faster)[:MOST]
    rows: list[list[Frames]] = [[], []]
    for pair in pairs:
        for row, frames in zip(rows, pair.frames(), strict=True):
            row.append(frames)
    titles = [
        title_of("original", baseline, [pair.reference for pair in pairs]),
        title_of("osp-opt", faster, [pair.candidate for pair in pairs]),
    ]
    data = encode(compose(rows, titles), baseline.fps or 12.0, args.out.suffix)
    if len(data) > LIMIT:
        raise SystemExit(f"{args.out}: {len(data):,} bytes, more than {LIMIT:,}; use fewer prompts")
    atomic_write_bytes(args.out, data)
    print(f"{args.out}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
