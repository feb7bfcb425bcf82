"""The checker against clips whose content is known, and against clips that must not pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import InputError, ShapeError
from osp_opt.tiny.checker import check, read_clip
from osp_opt.tiny.measure import largest_piece
from osp_opt.tiny.specs import ATTRIBUTES, BACKGROUNDS, COLORS, MOTIONS, SHAPES, ClipSpec
from tools.train_tiny.captions import NUM_STYLES, caption
from tools.train_tiny.clips import ClipGeometry, render, render_clips, to_uint8
from tools.train_tiny.prompts import all_specs

RED_CIRCLE = ClipSpec("circle", "red", "black", "still")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def box_blur(video: Tensor, size: int) -> Tensor:
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    padded = F.pad(frames, (size // 2,) * 4, mode="replicate")
    return rearrange(F.avg_pool2d(padded, size, 1), "(b t) c h w -> b c t h w", b=len(video))


def rates(video: Tensor, specs: Sequence[ClipSpec]) -> dict[str, float]:
    """Share of clips read right, per attribute."""
    right = Counter[str]()
    for clip, spec in zip(to_uint8(video), specs, strict=True):
        right.update(name for name, ok in check(clip, spec).right().items() if ok)
    return {name: right[name] / len(specs) for name in (*ATTRIBUTES, "all")}


def one(spec: ClipSpec = RED_CIRCLE, frames: int = 13, seed: int = 0) -> Tensor:
    """One clip as the pipeline returns it, uint8 [t h w c]."""
    return to_uint8(render_clips([spec], rng(seed), frames)[0])[0]


def reads(video: Tensor) -> dict[str, str | None]:
    return {name: value for name, (value, _) in read_clip(video).items()}


def test_all_clean_clips_are_read_right() -> None:
    specs = all_specs()
    found = rates(render_clips(specs, rng(1), num_frames=9)[0], specs)
    assert found == dict.fromkeys((*ATTRIBUTES, "all"), 1.0)


def test_blurred_and_noisy_clips_are_read_right() -> None:
    """Box blur 3 and noise of 10 levels of 255."""
    specs = all_specs()[::2]
    video = box_blur(render_clips(specs, rng(2), num_frames=9)[0], 3)
    noise = torch.from_numpy(rng(3).standard_normal(video.shape, dtype=np.float32))
    assert min(rates(video + noise * 2 * 10 / 255, specs).values()) >= 0.99


@pytest.mark.parametrize(("frames", "height", "width"), [(29, 48, 80), (5, 128, 96), (17, 32, 32)])
def test_other_video_shapes_are_read_right(frames: int, height: int, width: int) -> None:
    specs = all_specs()[::17]
    assert rates(render_clips(specs, rng(4), frames, height, width)[0], specs)["all"] == 1.0


def test_washed_out_colors_are_still_named() -> None:
    specs = all_specs()[::11]
    assert rates(0.85 * render_clips(specs, rng(5), num_frames=5)[0], specs)["all"] == 1.0


@pytest.mark.parametrize("style", range(NUM_STYLES))
def test_the_prompt_may_be_a_caption(style: int) -> None:
    spec = ClipSpec("triangle", "cyan", "orange", "up")
    result = check(one(spec), caption(spec, style))
    assert result.all
    assert str(result) == "shape triangle, color cyan, background orange, motion up"
    assert all(getattr(result, name).margin > 0.05 for name in ATTRIBUTES)


@pytest.mark.parametrize(
    ("attribute", "values"),
    [("shape", SHAPES), ("color", COLORS), ("background", BACKGROUNDS), ("motion", MOTIONS)],
)
def test_a_wrong_prompt_fails_in_its_attribute_only(attribute: str, values: Sequence[str]) -> None:
    for true in values:
        made = {**vars(RED_CIRCLE), attribute: true}
        video = one(ClipSpec(**made))
        for asked in values:
            right = check(video, ClipSpec(**{**made, attribute: asked})).right()
            others = [right[name] for name in ATTRIBUTES if name != attribute]
            assert all(others)
            assert right[attribute] == right["all"] == (asked == true)


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "salt"])
def test_noise_shows_nothing(kind: str) -> None:
    draw = {
        "gaussian": lambda: 127 + 60 * rng(6).standard_normal((9, 64, 64, 3)),
        "uniform": lambda: rng(6).integers(0, 256, (9, 64, 64, 3)),
        "salt": lambda: 255 * rng(6).integers(0, 2, (9, 64, 64, 1)).repeat(3, axis=-1),
    }[kind]()
    video = torch.from_numpy(np.clip(draw, 0, 255).astype(np.uint8))
    assert set(reads(video).values()) == {None}


@pytest.mark.parametrize("level", [0, 128, 200, 255])
def test_a_constant_color_shows_a_background_at_most(level: int) -> None:
    seen = reads(torch.full((9, 64, 64, 3), level, dtype=torch.uint8))
    assert [seen[name] for name in ("shape", "color", "motion")] == [None] * 3
    assert seen["background"] == {0: "black", 128: "gray", 255: "white"}.get(level)


def test_colors_that_are_in_no_palette_are_not_named() -> None:
    video = one(ClipSpec("circle", "red", "black", "left")).clone()
    video[video[..., 0] > 100] = torch.tensor([120, 60, 140], dtype=torch.uint8)  # purple
    assert reads(video) == {
        "shape": "circle",
        "color": None,
        "background": "black",
        "motion": "left",
    }
    teal = torch.where(video.sum(-1, keepdim=True) < 30, torch.tensor([0, 90, 90]), video)
    assert reads(teal.to(torch.uint8))["background"] is None


def test_heavy_blur_has_no_shape() -> None:
    specs = all_specs()[::9]
    blurred = box_blur(render_clips(specs, rng(7), num_frames=5)[0], 11)
    assert rates(blurred, specs)["shape"] == 0


def place(spec: ClipSpec, x: float | np.ndarray, y: float | np.ndarray, count: int = 13) -> Tensor:
    """A clip of that shape at the given path, uint8 [t h w c]."""
    path = np.stack([np.broadcast_to(x, count), np.broadcast_to(y, count)], axis=1)
    return to_uint8(render([spec], ClipGeometry(path[None].astype(float), np.array([13.5]))))[0]


def test_a_shape_that_changes_on_the_way_has_no_name() -> None:
    circle = place(RED_CIRCLE, 32, 32)
    square = place(ClipSpec("square", "red", "black", "still"), 32, 32)
    blue = place(ClipSpec("circle", "blue", "black", "still"), 32, 32)
    white = place(ClipSpec("circle", "red", "white", "still"), 32, 32)
    for other, attribute in ((square, "shape"), (blue, "color"), (white, "background")):
        video = torch.cat([circle[:6], other[6:]])
        expected = {**vars(RED_CIRCLE), attribute: None}
        assert reads(video) == expected


def test_two_shapes_are_neither() -> None:
    left, right = place(RED_CIRCLE, 16, 32), place(RED_CIRCLE, 48, 32)
    blue = place(ClipSpec("circle", "blue", "black", "still"), 48, 32)
    for other in (right, blue):
        seen = reads(torch.maximum(left, other))
        assert seen == {"shape": None, "color": None, "background": "black", "motion": None}


def test_a_shape_of_two_colors_has_no_color() -> None:
    video = place(RED_CIRCLE, 32, 32)
    blue = place(ClipSpec("circle", "blue", "black", "still"), 32, 32)
    video[:, :, 32:] = blue[:, :, 32:]
    assert reads(video)["color"] is None


def test_a_shape_in_the_first_frames_only_has_no_name() -> None:
    video = place(RED_CIRCLE, 32, 32)
    video[5:] = 0
    assert reads(video) == {"shape": None, "color": None, "background": "black", "motion": None}


def test_specks_and_full_frames_are_no_shapes() -> None:
    speck = torch.zeros(9, 64, 64, 3, dtype=torch.uint8)
    speck[:, 30:36, 30:36, 0] = 230
    full = torch.zeros(9, 64, 64, 3, dtype=torch.uint8)
    full[:, 4:60, 4:60, 0] = 230
    for video in (speck, full):
        assert reads(video)["shape"] is None
        assert reads(video)["color"] is None


def test_a_ring_and_a_diamond_are_not_circle_or_square() -> None:
    y, x = np.mgrid[:64, :64] + 0.5 - 32
    ring = (np.hypot(x, y) < 18) & (np.hypot(x, y) > 11)
    diamond = abs(x) + abs(y) < 19
    for mask in (ring, diamond):
        video = np.zeros((9, 64, 64, 3), dtype=np.uint8)
        video[:, mask] = (230, 0, 13)
        assert reads(torch.from_numpy(video))["shape"] not in {"square", "triangle"}
    assert reads(torch.from_numpy(np.where(ring[..., None], video * 0 + 230, 0)))["shape"] is None


TIME = np.linspace(-1, 1, 13)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("back and forth", 32 + 12 * np.sin(2 * np.pi * TIME), 32),
        ("out and home", 44 - 24 * abs(TIME), 32),
        ("one jump", 32 + 12 * np.sign(TIME), 32),
        ("diagonal", 32 + 12 * TIME, 32 + 12 * TIME),
        ("too slow to tell", 32 + 4.5 * TIME, 32),
    ],
)
def test_paths_that_are_no_motion(name: str, x: np.ndarray, y: np.ndarray | float) -> None:
    del name
    seen = reads(place(RED_CIRCLE, x, y))
    assert seen == {**vars(RED_CIRCLE), "motion": None}


def test_slow_and_wavering_paths_are_motions() -> None:
    wavering = place(RED_CIRCLE, 32 - 9 * TIME, 32 + 1.5 * np.sin(9 * TIME))
    assert reads(wavering)["motion"] == "left"
    trembling = place(RED_CIRCLE, 32 + np.sin(9 * TIME), 32 + np.cos(7 * TIME))
    assert reads(trembling)["motion"] == "still"


def test_played_backwards_the_motion_turns() -> None:
    turned = {"left": "right", "right": "left", "up": "down", "down": "up", "still": "still"}
    for motion, expected in turned.items():
        video = one(ClipSpec("square", "green", "white", motion)).flip(0)
        assert reads(video)["motion"] == expected


def test_an_image_has_no_motion() -> None:
    assert reads(one(frames=1)) == {**vars(RED_CIRCLE), "motion": None}


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="found 'a red circle'"):
        check(one(), "a red circle")
    with pytest.raises(ShapeError, match="found float32"):
        read_clip(one().float())
    with pytest.raises(ShapeError, match="give uint8"):
        read_clip(one()[..., 0])


def test_largest_piece_against_flood_fill() -> None:
    """Random masks near the percolation threshold, where pieces wind."""
    mask = rng(8).random((4, 20, 24)) < 0.6
    for frame, piece in zip(mask, largest_piece(mask), strict=True):
        sizes = {}
        left = {(int(i), int(j)) for i, j in np.argwhere(frame)}
        while left:
            queue, members = [left.pop()], set()
            while queue:
                i, j = queue.pop()
                members.add((i, j))
                near = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & left
                left -= near
                queue += near
            sizes[frozenset(members)] = len(members)
        assert piece.sum() == max(sizes.values())
        assert frozenset((int(i), int(j)) for i, j in np.argwhere(piece)) in sizes
