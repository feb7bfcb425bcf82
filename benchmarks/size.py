"""How much is measured: a quick check that everything runs, or as much as a budget allows."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Size", "full_size", "quick_size"]


@dataclass(frozen=True)
class Size:
    """What the sections work with.

    steps: of the baseline. lengths: of shorter schedules, the ones that the goals name first.
    judges: fresh prompts per measurement, for the steps, cache and combined sections.
    ays_lengths: lengths for coordinate descent, which costs most. ratios: asked of search-cache;
    reuse_ratios: of it, beside recipes.
    knobs: settings per peer, at most. targets: speeds in counted work at which a peer's threshold
    is put. field_prompts: that judge the caches with other samplers;
    attribute_prompts: that judge samplers by what they draw.
    deciding: verification prompts of a cache search; reference_prompts: of the reference tool's.
    predictor_policies: drawn at each cost, to see whether the score ranks them.
    """

    name: str
    steps: int
    lengths: tuple[int, ...]
    calibration: int
    judges: tuple[int, int, int]
    ays_lengths: tuple[int, ...]
    ays_candidates: int
    ays_iterations: int
    step_budget: float
    step_verify: int
    four_field_ratios: tuple[float, ...]
    free_ratios: tuple[float, ...]
    reuse_ratios: tuple[float, ...]
    cache_budget: float
    deciding: int
    reference_lengths: tuple[int, ...]
    reference_prompts: int
    reference_candidates: int
    reference_iterations: int
    knobs: int
    targets: tuple[float, ...]
    field_prompts: int
    attribute_prompts: int
    noise_prompts: int
    sampler_prompts: int
    predictor_policies: int
    predictor_prompts: int
    scaling_videos: int
    scaling_repeats: int

    @property
    def half(self) -> int:
        """The length of the goal "100 -> 50"."""
        return self.lengths[0]

    @property
    def third(self) -> int:
        """The length of the goal "100 -> 33"."""
        return self.lengths[1]


def quick_size() -> Size:
    """Everything once, with a shorter baseline and two prompts: its figures mean nothing."""
    return Size(
        name="quick",
        steps=30,
        lengths=(15, 10),
        calibration=5,
        judges=(2, 2, 2),
        ays_lengths=(10,),
        ays_candidates=2,
        ays_iterations=2,
        step_budget=3,
        step_verify=2,
        four_field_ratios=(1.3,),
        free_ratios=(1.3, 2.0),
        reuse_ratios=(2.0,),
        cache_budget=4,
        deciding=2,
        reference_lengths=(15,),
        reference_prompts=1,
        reference_candidates=3,
        reference_iterations=2,
        knobs=2,
        targets=(1.5, 3.0),
        field_prompts=2,
        attribute_prompts=2,
        noise_prompts=2,
        sampler_prompts=2,
        predictor_policies=3,
        predictor_prompts=1,
        scaling_videos=2,
        scaling_repeats=1,
    )


# Work in uncached videos, counted from what the sections do: a fixed part, and for each judging
# prompt of the three sections. Decoding and checking a video counts as a third of one.
_FIXED = 890.0
_PER_JUDGE = (14.0, 44.0, 32.0)  # the last one with the converged video, of eight
_SHARES = (0.2, 0.45, 0.35)
_FEWEST, _MOST = (6, 4, 4), (60, 40, 40)
_ROOMY, _AMPLE = 2000.0, 6000.0  # more than an hour; hours


def full_size(minutes: float, seconds_per_video: float) -> Size:
    """As many judging prompts as `minutes` allow when one uncached video takes so many seconds.

    From an hour on the searches get their default budgets, and coordinate descent more lengths.
    """
    room = max(0.0, minutes * 60.0 / seconds_per_video - _FIXED)
    judges = [
        min(max(int(share * room / work), least), most)
        for share, work, least, most in zip(_SHARES, _PER_JUDGE, _FEWEST, _MOST, strict=True)
    ]
    size = Size(
        name="full",
        steps=100,
        lengths=(50, 33, 25, 12),
        calibration=8,
        judges=(judges[0], judges[1], judges[2]),
        ays_lengths=(12,),
        ays_candidates=4,
        ays_iterations=2,
        step_budget=10,
        step_verify=8,
        four_field_ratios=(1.3, 1.5),
        free_ratios=(1.3, 1.5, 2.0),
        reuse_ratios=(2.0, 3.0),
        cache_budget=12,
        deciding=4,
        reference_lengths=(50, 25),
        reference_prompts=2,
        reference_candidates=11,
        reference_iterations=5,
        knobs=4,
        targets=(1.25, 1.5, 2.0, 3.0),
        field_prompts=8,
        attribute_prompts=40,
        noise_prompts=8,
        sampler_prompts=8,
        predictor_policies=10,
        predictor_prompts=2,
        scaling_videos=4,
        scaling_repeats=2,
    )
    if room > _ROOMY:
        size = replace(size, ays_lengths=(50, 25, 12), step_verify=12)
        size = replace(size, reference_lengths=size.lengths, reference_prompts=4)
        size = replace(size, free_ratios=(1.3, 1.5, 2.0, 2.5), scaling_repeats=3)
        size = replace(size, noise_prompts=16, sampler_prompts=16)
        size = replace(size, predictor_policies=20, predictor_prompts=3)
    if room > _AMPLE:
        size = replace(size, ays_lengths=size.lengths, ays_candidates=11, ays_iterations=5)
    return size
