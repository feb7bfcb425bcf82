"""MindIE-SD (Huawei's runtime on Ascend): its CacheConfig, and the tensor of its older cache_mgr.

What is said here of MindIE-SD was tried with mindiesd 3.1.0, whose cache classes run on a CPU;
`tests/golden/mindie_sd.json` holds what they did. No torch but for the tensor.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import BlockRange, CachePolicy
from osp_opt.export.nearest import (
    as_four_field,
    difference,
    nearest_four_field,
    refuse_guidance,
    reuse_table,
)

__all__ = [
    "MindieCache",
    "mindie_policy_file",
    "mindie_policy_table",
    "mindie_sd_arguments",
    "parse_cache_config",
    "read_mindie_sd",
]

BLOCK_METHOD = "dit_block_cache"
ATTENTION_METHOD = "attention_cache"
MAX_BLOCKS = 32
"""Blocks for which cache_mgr keeps changes."""

# CacheConfig's fields in its order; those with a default may be left out.
_REQUIRED = ("blocks_count", "steps_count")
_DEFAULTS = {
    "step_start": 0,
    "step_interval": 1,
    "step_end": 10_000,
    "block_start": 0,
    "block_end": 10_000,
}
_LEAST = {"blocks_count": 1, "steps_count": 1, "step_interval": 1}
_NEVER_REUSES = "MindIE-SD computes every block at every step with it"


def mindie_sd_arguments(policy: CachePolicy, num_blocks: int, num_steps: int) -> dict[str, Any]:
    """Arguments of MindIE-SD's CacheConfig that do what `policy` does.

    One CacheAgent with it per guidance branch where the transformer runs twice a step.
    Raises PolicyError, with the nearest rule, for forecasts, for one block (which MindIE-SD gets
    wrong), and for a plan that is no four-field rule.
    """
    policy.validate(num_blocks, num_steps)
    refuse_guidance(policy, num_steps, "MindIE-SD")
    same = as_four_field(policy, num_steps)
    reason = None
    if policy.order:
        reason = "MindIE-SD reuses the last change, this policy forecasts it"
    elif same is None:
        reason = "MindIE-SD reuses one range of blocks, off a fixed interval of steps"
    elif same.rule is not None and same.rule.num_blocks == 1:
        reason = "with one block MindIE-SD adds its input in place of its change"
    if reason is not None or same is None or same.rule is None:
        nearest = nearest_four_field(policy, num_blocks, num_steps)
        off = difference(policy, nearest, num_blocks, num_steps)
        raise PolicyError(f"{reason}; the nearest that it can do is {nearest} ({off})")
    rule = same.rule
    return {
        "method": BLOCK_METHOD,
        "blocks_count": num_blocks,
        "steps_count": num_steps,
        "step_start": rule.step_start,
        "step_interval": rule.step_interval,
        "block_start": rule.block_start,
        "block_end": rule.block_start + rule.num_blocks,
    }


@dataclass(frozen=True)
class MindieCache:
    """What a CacheConfig of MindIE-SD does: `policy` for this many blocks and steps.

    `notes` are lines about what in it does not do what it says.
    """

    policy: CachePolicy
    num_blocks: int
    num_steps: int
    notes: tuple[str, ...] = ()


def read_mindie_sd(arguments: Mapping[str, Any]) -> MindieCache:
    """The cache that MindIE-SD makes of CacheConfig's `arguments`.

    Raises PolicyError for what MindIE-SD refuses, for a configuration that never reuses anything,
    for one block, which it computes wrongly, and for attention_cache, which keeps the outputs of
    attentions: no policy of blocks does the same.
    """
    values = _checked(arguments)
    if arguments["method"] == ATTENTION_METHOD:
        raise PolicyError(
            "attention_cache reuses the output of every block's attention at the steps off its "
            f"interval from {values['step_start'] + 1} to {values['step_end']}; osp-opt reuses "
            "whole blocks, so nothing here does the same"
        )
    blocks, steps = values["blocks_count"], values["steps_count"]
    start, end = values["block_start"], values["block_end"]
    if values["step_interval"] == 1:
        raise PolicyError(f"step_interval is 1: {_NEVER_REUSES}")
    if values["step_end"] == values["step_start"] or values["step_start"] >= steps - 1:
        raise PolicyError(
            f"step_start is {values['step_start']}, step_end {values['step_end']}, of {steps} "
            f"steps: {_NEVER_REUSES}"
        )
    if start >= blocks or start == end:
        raise PolicyError(f"blocks {start} to {end} of {blocks} are none: {_NEVER_REUSES}")
    if end - start == 1:
        raise PolicyError(
            "one block: MindIE-SD adds its input in place of its change, which spoils the video; "
            "use two blocks or more"
        )
    policy = CachePolicy.four_field(
        start, end - start, values["step_start"], values["step_interval"]
    )
    notes = []
    if values["step_end"] < steps:
        notes.append(
            f"step_end {values['step_end']} does nothing in MindIE-SD: it reuses off the interval "
            f"to the last step ({steps - 1}), and so does this policy"
        )
    return MindieCache(policy, blocks, steps, tuple(notes))


def parse_cache_config(text: str) -> dict[str, Any]:
    """The arguments of a Python call ``CacheConfig(method="...", ...)``. Raises PolicyError."""
    wrong = PolicyError("neither JSON nor one call CacheConfig(method=..., blocks_count=..., ...)")
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise wrong
        name = (
            call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        )
        if name != "CacheConfig" or any(word.arg is None for word in call.keywords):
            raise wrong
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise wrong from error


def mindie_policy_table(
    policy: CachePolicy, num_blocks: int, num_steps: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[steps - 1, blocks]: True where block b is reused at step t, in row t - 1 (step 0 runs all).

    cache_mgr keeps one change per block and adds that of the block's last run. The change of a
    range is the sum of its blocks', so this is `policy`, to rounding, where all blocks of a range
    last ran at the step whose change the policy reuses. Raises PolicyError where they did not, for
    forecasts, and for more than 32 blocks.
    """
    refuse_guidance(policy, num_steps, "cache_mgr")
    table = reuse_table(policy, num_blocks, num_steps)
    if policy.order:
        raise PolicyError(
            "cache_mgr reuses a block's last change, this policy forecasts it; the nearest that it "
            "can do is the same plan with order 0"
        )
    if num_blocks > MAX_BLOCKS:
        raise PolicyError(
            f"cache_mgr keeps changes of {MAX_BLOCKS} blocks; the model has {num_blocks}"
        )
    if policy.rule is None and not _sources_agree(policy, num_blocks):
        raise PolicyError(
            "in this plan blocks of one range last ran at different steps, and cache_mgr would add "
            "their later changes; the nearest that it can do is "
            f"{nearest_four_field(policy, num_blocks, num_steps)}"
        )
    return table[1:]


def mindie_policy_file(table: np.ndarray[Any, np.dtype[np.bool_]]) -> bytes:
    """The file that cache_mgr loads: `table` as a boolean tensor, by torch.save."""
    import torch

    stream = io.BytesIO()
    torch.save(torch.from_numpy(table.copy()), stream)
    return stream.getvalue()


def _sources_agree(policy: CachePolicy, num_blocks: int) -> bool:
    """Whether each reused range's change is of the step at which all its blocks last ran."""
    last_run = np.full(num_blocks, -1)
    source: dict[BlockRange, int] = {}
    for step, reused in enumerate(policy.plan):
        if any(np.any(last_run[slice(*blocks)] != source[blocks]) for blocks in reused):
            return False
        source |= dict.fromkeys(policy.store_ranges(step), step)
        runs = np.ones(num_blocks, dtype=np.bool_)
        for start, end in reused:
            runs[start:end] = False
        last_run[runs] = step
    return True


def _checked(arguments: Mapping[str, Any]) -> dict[str, int]:
    """CacheConfig's whole numbers, with its defaults; what its own checks refuse is refused."""
    known = ("method", *_REQUIRED, *_DEFAULTS)
    missing = [name for name in ("method", *_REQUIRED) if name not in arguments]
    extra = [name for name in arguments if name not in known]
    if missing or extra:
        found = f"no {missing[0]}" if missing else f"unknown {extra[0]!r}"
        raise PolicyError(f"{found}; MindIE-SD's CacheConfig has {', '.join(known)}")
    if arguments["method"] not in (BLOCK_METHOD, ATTENTION_METHOD):
        raise PolicyError(
            f"method is {arguments['method']!r:.40}; MindIE-SD has {BLOCK_METHOD} and "
            f"{ATTENTION_METHOD}"
        )
    values = {**_DEFAULTS, **{name: arguments[name] for name in arguments if name != "method"}}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < _LEAST.get(name, 0):
            raise PolicyError(
                f"{name} is {value!r:.40}; it must be a whole number of at least "
                f"{_LEAST.get(name, 0)}"
            )
    is_block = arguments["method"] == BLOCK_METHOD
    if is_block and values["block_end"] > values["blocks_count"]:
        raise PolicyError(
            f"block_end is {values['block_end']}; MindIE-SD refuses more than blocks_count "
            f"{values['blocks_count']}"
        )
    for kind in ("step", "block"):
        if values[f"{kind}_end"] < values[f"{kind}_start"]:
            raise PolicyError(f"{kind}_end is below {kind}_start; MindIE-SD refuses that")
    return values
