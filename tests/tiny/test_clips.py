"""Rendered clips against geometry worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osp_opt.base.errors import ShapeError
from osp_opt.tiny.shapes import half_extent
from osp_opt.tiny.specs import BACKGROUNDS, COLORS, MOTIONS, ClipSpec
from tools.train_tiny.clips import ClipGeometry, draw_geometry, render, render_clips, to_uint8
from tools.train_tiny.prompts import all_specs

#: Area of each shape at radius 1, from school geometry.
AREA = {"circle": np.pi, "square": 1.8**2, "triangle": 2.4 * 2.1 / 2}


def cover_of(video: torch.Tensor, spec: ClipSpec) -> np.ndarray:
    """[c t h w] in [-1, 1] -> [t h w], 0 on the background's colour and 1 on the shape's."""
    channel = int(np.argmax(np.abs(np.subtract(COLORS[spec.color], BACKGROUNDS[spec.background]))))
    back = BACKGROUNDS[spec.background][channel]
    front = COLORS[spec.color][channel]
    return ((video[channel].numpy() + 1) / 2 - back) / (front - back)


@pytest.mark.parametrize(("frames", "height", "width"), [(29, 64, 64), (5, 32, 96), (9, 128, 80)])
def test_area_position_and_travel_are_as_told(frames: int, height: int, width: int) -> None:
    specs = all_specs()[::13]
    video, geometry = render_clips(specs, np.random.default_rng(3), frames, height, width)
    assert video.shape == (len(specs), 3, frames, height, width)
    assert video.dtype == torch.float32
    assert video.min() >= -1
    assert video.max() <= 1
    unit = min(height, width) / 64
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for clip, spec, center, radius in zip(
        video, specs, geometry.centers, geometry.radius, strict=True
    ):
        cover = cover_of(clip, spec)
        area = cover.sum(axis=(1, 2))
        np.testing.assert_allclose(area, AREA[spec.shape] * radius**2, rtol=0.04)
        lift = 0.35 * radius if spec.shape == "triangle" else 0  # centroid at 2/3 of its height
        centroid = np.stack(
            [cover.sum(axis=1) @ x / area, cover.sum(axis=2) @ y / area - lift], axis=1
        )
        np.testing.assert_allclose(centroid, center, atol=0.15)
        travel = np.array(MOTIONS[spec.motion]) * 24 * unit
        np.testing.assert_allclose(center[-1] - center[0], travel, atol=1e-9)
        np.testing.assert_allclose(np.diff(center, axis=0), [travel / (frames - 1)] * (frames - 1))
        assert 13 * unit <= radius <= 15 * unit
        extent = np.array(half_extent(spec.shape)) * radius
        assert (center - extent >= 0).all()
        assert (center + extent <= (width, height)).all()


def test_triangle_points_up() -> None:
    geometry = ClipGeometry(np.full((1, 1, 2), 32.0), np.array([14.0]))
    spec = ClipSpec("triangle", "red", "black", "still")
    rows = cover_of(render([spec], geometry)[0], spec)[0].sum(axis=1)
    inside = rows[rows > 0.5]
    assert (np.diff(inside[:-1]) > 0).all()  # wider row by row, down to the base
    assert inside.max() == pytest.approx(2 * 1.2 * 14, abs=1.5)


def test_supersampling_gives_the_same_edges() -> None:
    """The analytic edge is within a quarter of a level of 8x8 brute-force coverage."""
    center, radius = (30.3, 33.8), 13.7
    offsets = (np.arange(64 * 8) + 0.5) / 8
    x, y = offsets[None, :] - center[0], offsets[:, None] - center[1]
    half_w, half_h = 1.2 * radius, 1.05 * radius
    inside = {
        "circle": x**2 + y**2 <= radius**2,
        "square": np.maximum(abs(x), abs(y)) <= 0.9 * radius,
        "triangle": (y <= half_h) & (abs(x) <= (y + half_h) / (2 * half_h) * half_w),
    }
    geometry = ClipGeometry(np.array([[center]]), np.array([radius]))
    for shape, mask in inside.items():
        spec = ClipSpec(shape, "yellow", "black", "still")
        cover = cover_of(render([spec], geometry)[0], spec)[0]
        exact = mask.reshape(64, 8, 64, 8).mean(axis=(1, 3))
        assert abs(cover - exact).max() < 0.26
        assert abs(cover - exact).mean() < 2e-3


def test_one_seed_gives_one_batch() -> None:
    specs = all_specs()[:7]
    first, _ = render_clips(specs, np.random.default_rng(5), 5, 32, 32)
    again, _ = render_clips(specs, np.random.default_rng(5), 5, 32, 32)
    other, _ = render_clips(specs, np.random.default_rng(6), 5, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_image_is_drawn_mid_path() -> None:
    video, geometry = render_clips(all_specs()[:5], np.random.default_rng(0), 1, 64, 64)
    assert video.shape == (5, 3, 1, 64, 64)
    assert geometry.centers.shape == (5, 1, 2)


def test_no_frames_are_refused() -> None:
    with pytest.raises(ShapeError, match="found 0x64x64"):
        render_clips(all_specs()[:1], np.random.default_rng(0), 0)


def test_to_uint8_truncates_like_the_pipeline() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 1, 6)
    assert to_uint8(video).flatten().tolist() == [0, 0, 127, 254, 255, 255]


def test_jitter_bounds_how_far_a_path_lies_off_the_middle() -> None:
    specs = all_specs()
    rng = np.random.default_rng(1)
    near = draw_geometry(specs, rng).centers.mean(axis=1) - 32
    anywhere = draw_geometry(specs, rng, jitter=np.inf).centers.mean(axis=1) - 32
    assert 3.5 < np.abs(near).max() <= 4
    assert np.abs(anywhere).max() > 14  # 32 pixels less radius and margin, where nothing moves
