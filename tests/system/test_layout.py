"""The arithmetic of rank layouts, checked against its definition."""

from __future__ import annotations

import itertools

import pytest

from osp_opt.base.errors import OptionError
from osp_opt.system.ranks import (
    Layout,
    Workload,
    auto_layout,
    check_layout,
    layouts_for,
    parse_layout,
)

RELEASED_29X720P = Workload(heads=24, tokens=28_800, guided=True)
SHAPES = [Layout(dp, cfg, sp) for dp in (1, 2, 3) for cfg in (1, 2) for sp in (1, 2, 4)]


@pytest.mark.parametrize("layout", SHAPES, ids=str)
def test_every_rank_has_one_place_and_sequence_neighbours_are_adjacent(layout: Layout) -> None:
    places = [layout.place(rank) for rank in range(layout.world_size)]
    assert places == list(itertools.product(range(layout.dp), range(layout.cfg), range(layout.sp)))
    assert [layout.rank_at(*place) for place in places] == list(range(layout.world_size))


@pytest.mark.parametrize("layout", SHAPES, ids=str)
def test_groups_hold_the_ranks_that_differ_in_one_axis_only(layout: Layout) -> None:
    ranks = range(layout.world_size)
    for groups, free in (
        (layout.sequence_groups(), {2}),
        (layout.cfg_groups(), {1}),
        (layout.replica_groups(), {1, 2}),
    ):
        assert sorted(rank for group in groups for rank in group) == list(ranks)
        for group in groups:
            fixed = [
                [value for axis, value in enumerate(layout.place(rank)) if axis not in free]
                for rank in group
            ]
            assert all(each == fixed[0] for each in fixed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", None),
        ("dp=2,cfg=2,sp=2", Layout(2, 2, 2)),
        ("sp=4", Layout(2, 1, 4)),
        (" cfg=2 , sp=4 ", Layout(1, 2, 4)),
        ("dp=8", Layout(8)),
    ],
)
def test_layouts_are_read(text: str, expected: Layout | None) -> None:
    assert parse_layout(text, 8) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sp=3", "makes 3 processes but 8 run"),
        ("dp=2,cfg=2,sp=4", "makes 16 processes but 8 run"),
        ("tp=2", "'tp=2' is not understood"),
        ("sp", "'sp' is not understood"),
        ("sp=-2", "'sp=-2' is not understood"),
        ("sp=2,sp=4", "an axis is given twice"),
        ("cfg=4,sp=2", "cfg is 4"),
        ("dp=0,sp=8", "dp is 0"),
        ("", "'' is not understood"),
    ],
)
def test_malformed_layouts_are_refused(text: str, found: str) -> None:
    with pytest.raises(OptionError, match=found):
        parse_layout(text, 8)


def test_the_refusal_lists_every_layout_of_that_many_processes() -> None:
    with pytest.raises(OptionError) as caught:
        parse_layout("sp=3", 4)
    brute_force = {
        str(Layout(dp, cfg, sp))
        for dp, cfg, sp in itertools.product(range(1, 5), (1, 2), range(1, 5))
        if dp * cfg * sp == 4
    }
    assert set(str(caught.value).split("work: ")[1].split("; ")) == brute_force


@pytest.mark.parametrize(
    ("layout", "workload", "found"),
    [
        (Layout(sp=5), Workload(24, 9_600, True), "24 attention heads do not divide by sp=5"),
        (Layout(sp=8), Workload(24, 300, True), "300 tokens do not divide by sp=8"),
        (Layout(cfg=2), Workload(24, 300, False), "two guidance branches"),
    ],
)
def test_what_a_layout_cannot_divide_is_refused_with_what_works(
    layout: Layout, workload: Workload, found: str
) -> None:
    with pytest.raises(OptionError, match=found) as caught:
        check_layout(layout, workload)
    offered = str(caught.value).split("work: ")[1].split("; ")
    for text in offered:
        other = parse_layout(text, layout.world_size)
        assert other is not None
        check_layout(other, workload)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_released_shapes_split_over_2_4_and_8(processes: int) -> None:
    for tokens in (9_600, 28_800, 86_400):
        check_layout(Layout(sp=processes), Workload(24, tokens, True))


@pytest.mark.parametrize(
    ("processes", "items", "guided", "expected"),
    [
        (8, 1, True, Layout(1, 2, 4)),
        (8, 1, False, Layout(1, 1, 8)),
        (8, 96, True, Layout(8)),
        (8, 9, True, Layout(2, 2, 2)),  # 5 videos each at 1.07 / 4; dp=8: 2, dp=4,cfg=2: 1.5
        (8, 4, True, Layout(4, 2, 1)),
        (8, None, True, Layout(8)),
        (1, 1, True, Layout()),
        (5, 1, True, Layout(5)),  # 24 heads do not divide by 5: spare ranks stay idle
    ],
)
def test_auto_uses_every_rank_it_can(
    processes: int, items: int | None, guided: bool, expected: Layout
) -> None:
    assert auto_layout(processes, Workload(24, 28_800, guided, items)) == expected


def test_layouts_for_is_complete() -> None:
    for world_size in range(1, 17):
        listed = layouts_for(world_size)
        assert len(set(listed)) == len(listed)
        assert all(layout.world_size == world_size for layout in listed)
        assert set(layouts_for(world_size, RELEASED_29X720P)) == {
            layout for layout in listed if 24 % layout.sp == 0 and 28_800 % layout.sp == 0
        }
