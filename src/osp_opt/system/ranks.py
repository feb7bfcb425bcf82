"""How the ranks of a job are laid out: data x cfg x sequence (no torch).

* **data** (``dp``): independent work, such as prompts, search candidates, calibration videos;
* **cfg**: the two branches of classifier-free guidance, one half of the batch each;
* **sequence** (``sp``): the tokens of one video (Ulysses, Jacobs et al. 2023, arXiv 2309.14509).

Sequence neighbours have neighbouring ranks, because they talk most and should share a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from osp_opt.base.errors import OptionError

CFG_BRANCHES = 2
"""Classifier-free guidance has an unconditional and a conditional branch."""

SEQUENCE_OVERHEAD = 0.07
"""Relative cost of each further sequence rank: 29x720p takes 420 s on 1 and 80 s on 8 devices
(Open-Sora-Plan v1.2's published figures), 420 / 8 * (1 + 7 * 0.07) = 78."""


@dataclass(frozen=True)
class Layout:
    """Sizes of the three axes; their product is the number of ranks."""

    dp: int = 1
    cfg: int = 1
    sp: int = 1

    def __post_init__(self) -> None:
        for axis, size in (("dp", self.dp), ("cfg", self.cfg), ("sp", self.sp)):
            if size < 1:
                raise OptionError(f"--parallel {self}: {axis} is {size}; it must be at least 1")
        if self.cfg > CFG_BRANCHES:
            raise OptionError(f"--parallel {self}: cfg is {self.cfg}; it must be 1 or 2")

    def __str__(self) -> str:
        return f"dp={self.dp},cfg={self.cfg},sp={self.sp}"

    @property
    def world_size(self) -> int:
        """Number of ranks that the layout needs."""
        return self.dp * self.cfg * self.sp

    @property
    def replica_size(self) -> int:
        """Number of ranks that make one video together."""
        return self.cfg * self.sp

    def place(self, rank: int) -> tuple[int, int, int]:
        """Coordinates (data, cfg, sequence) of ``rank``."""
        return rank // self.replica_size, rank // self.sp % self.cfg, rank % self.sp

    def rank_at(self, data: int, cfg: int, sequence: int) -> int:
        """The rank at these coordinates: the inverse of :meth:`place`."""
        return (data * self.cfg + cfg) * self.sp + sequence

    def sequence_groups(self) -> list[list[int]]:
        """Ranks that share one video's tokens, for every (data, cfg)."""
        return [
            [self.rank_at(data, cfg, sequence) for sequence in range(self.sp)]
            for data in range(self.dp)
            for cfg in range(self.cfg)
        ]

    def cfg_groups(self) -> list[list[int]]:
        """Ranks that hold the two branches of the same tokens, for every (data, sequence)."""
        return [
            [self.rank_at(data, cfg, sequence) for cfg in range(self.cfg)]
            for data in range(self.dp)
            for sequence in range(self.sp)
        ]

    def replica_groups(self) -> list[list[int]]:
        """Ranks that make the same video, for every data index."""
        return [
            list(range(data * self.replica_size, (data + 1) * self.replica_size))
            for data in range(self.dp)
        ]


@dataclass(frozen=True)
class Workload:
    """What a layout has to divide.

    ``heads`` and ``tokens`` belong to the transformer's self-attention at the video's shape;
    ``guided`` says whether there are two guidance branches, ``one_branch_rests`` whether one of
    them does not run at some steps; ``items`` is the number of independent things to do, ``None``
    when it is not known.
    """

    heads: int
    tokens: int
    guided: bool
    items: int | None = None
    one_branch_rests: bool = False

    def obstacle(self, layout: Layout) -> str | None:
        """Why ``layout`` cannot run this workload, or None when it can."""
        if self.heads % layout.sp:
            return f"{self.heads} attention heads do not divide by sp={layout.sp}"
        if self.tokens % layout.sp:
            return f"{self.tokens} tokens do not divide by sp={layout.sp}"
        if layout.cfg > 1 and not self.guided:
            return "cfg=2 needs two guidance branches, but the guidance scale is at most 1"
        if layout.cfg > 1 and self.one_branch_rests:
            return "cfg=2 saves nothing by reusing guidance: half of the processes would wait"
        return None


def layouts_for(world_size: int, workload: Workload | None = None) -> list[Layout]:
    """Every layout of ``world_size`` ranks (that can run ``workload``, if given)."""
    return [
        layout
        for layout in _factorisations(world_size)
        if workload is None or workload.obstacle(layout) is None
    ]


def parse_layout(text: str, world_size: int) -> Layout | None:
    """Read ``--parallel``: ``auto`` gives None, ``dp=2,cfg=1,sp=4`` a layout.

    Axes that are not named are 1, except that a missing ``dp`` takes the ranks that are left.
    Raises OptionError when the text is malformed or does not make ``world_size`` ranks, naming
    the layouts that would.
    """
    if text.strip() == "auto":
        return None
    sizes = dict(_axis(part, text) for part in text.split(","))
    if len(sizes) != len(text.split(",")):
        raise OptionError(f"--parallel {text}: an axis is given twice; name each once")
    given = sizes.get("cfg", 1) * sizes.get("sp", 1)
    if "dp" not in sizes and given > 0 and world_size % given == 0:
        sizes["dp"] = world_size // given
    layout = Layout(**sizes)
    if layout.world_size != world_size:
        raise OptionError(
            f"--parallel {text}: makes {layout.world_size} processes but {world_size} run; "
            f"for {world_size} these work: {_listing(layouts_for(world_size))}"
        )
    return layout


def check_layout(layout: Layout, workload: Workload) -> None:
    """Raise OptionError, naming what would work, when ``layout`` cannot run ``workload``."""
    obstacle = workload.obstacle(layout)
    if obstacle is not None:
        working = _listing(layouts_for(layout.world_size, workload))
        raise OptionError(
            f"--parallel {layout}: {obstacle}; for {layout.world_size} processes these work: "
            f"{working}"
        )


def auto_layout(world_size: int, workload: Workload) -> Layout:
    """The layout expected to finish first; data parallelism wins a tie.

    Each data rank works through its share of the items, one after the other; an item's time falls
    with the ranks that make it together, less :data:`SEQUENCE_OVERHEAD`. ``dp`` alone is always
    possible, so there is always an answer.
    """
    items = world_size if workload.items is None else max(workload.items, 1)

    def cost(layout: Layout) -> tuple[float, int]:
        rounds = -(-items // layout.dp)
        slowed = 1 + SEQUENCE_OVERHEAD * (layout.sp - 1)
        return rounds * slowed / layout.replica_size, layout.replica_size

    return min(layouts_for(world_size, workload), key=cost)


def _factorisations(world_size: int) -> Iterator[Layout]:
    for sp in range(1, world_size + 1):
        for cfg in range(1, CFG_BRANCHES + 1):
            if world_size % (sp * cfg) == 0:
                yield Layout(world_size // (sp * cfg), cfg, sp)


def _axis(part: str, text: str) -> tuple[str, int]:
    name, _, size = part.strip().partition("=")
    if name not in ("dp", "cfg", "sp") or not size.isdecimal():
        raise OptionError(
            f"--parallel {text}: {part.strip()!r} is not understood; write auto or dp=N,cfg=N,sp=N"
        )
    return name, int(size)


def _listing(layouts: list[Layout]) -> str:
    return "; ".join(str(layout) for layout in layouts)
