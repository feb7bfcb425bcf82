"""Captions of clips, which `osp_opt.tiny.captions` reads again.

They are lower case and free of brackets and URLs, so that prompt cleaning leaves them as they are.
Shape colours and background colours are different words, so a caption can be read without knowing
its phrasing.
"""

from __future__ import annotations

from osp_opt.tiny.specs import ClipSpec

__all__ = ["NUM_STYLES", "all_captions", "caption"]

#: (phrasing when it moves, phrasing when it stays); {bg} carries its article. 0 is the canonical.
_TEMPLATES: tuple[tuple[str, str], ...] = (
    (
        "a {color} {shape} moves {motion} on {bg} background",
        "a {color} {shape} stays still on {bg} background",
    ),
    (
        "a {color} {shape} moving {motion} across {bg} background",
        "a {color} {shape} standing still in front of {bg} background",
    ),
    (
        "on {bg} background, one {color} {shape} is moving {motion}",
        "on {bg} background, one {color} {shape} is standing still",
    ),
    (
        "the {shape} is {color}, it moves {motion}, with {bg} background",
        "the {shape} is {color}, it stays still, with {bg} background",
    ),
)

NUM_STYLES = len(_TEMPLATES)


def caption(spec: ClipSpec, style: int = 0) -> str:
    """The clip in words; `style` in [0, NUM_STYLES) picks the phrasing, 0 is the canonical one."""
    moving, still = _TEMPLATES[style]
    article = "an" if spec.background[0] in "aeiou" else "a"
    return (still if spec.motion == "still" else moving).format(
        color=spec.color,
        shape=spec.shape,
        motion=spec.motion,
        bg=f"{article} {spec.background}",
    )


def all_captions(specs: tuple[ClipSpec, ...]) -> tuple[str, ...]:
    """Every phrasing of every spec, in order: what the tokenizer is trained on."""
    return tuple(caption(spec, style) for spec in specs for style in range(NUM_STYLES))
