"""Two planners of caches from papers, re-implemented small from their descriptions as baselines.

Both decide at which steps everything is computed; at the others the change of the whole stack of
blocks is reused (LeMiCa) or forecast (DPCache). Node S, behind the last step, ends every path.

* LeMiCa (arXiv 2511.00090): an edge i -> j says that steps i+1 .. j-1 reuse the change of step i.
  It weighs what that alone does to the finished video, L1; of all paths with so many computed steps
  the one is taken whose weights, largest first, are lexicographically least.
* DPCache (arXiv 2602.22654): the steps j+1 .. k-1 are forecast from the computed steps i < j, at a
  cost of the summed L1 error against the recorded changes; the path of least total cost is exact by
  a dynamic programme over pairs. The first two steps are always computed.

Our reading where the descriptions leave it open: one calibration prompt; LeMiCa's edges measured
from every few steps, and in between interpolated in the logarithm; a forecast in a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.lab import Lab
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import forecast_weights
from osp_opt.model.block import BlockLoop
from osp_opt.pipelines.maker import Request
from osp_opt.tiny.prompts import load_prompts

__all__ = ["LONGEST", "least_cost", "lexicographic_minimax", "planned_policies"]

LONGEST = 3  # steps in a row that are not computed
MEASURED_STARTS = 12  # of LeMiCa's edges, evenly over the steps

Edges = dict[tuple[int, int], float]
Costs = dict[tuple[int, int, int], float]


def planned_policies(
    lab: Lab, targets: Sequence[float]
) -> Iterator[tuple[str, float, CachePolicy]]:
    """(planner, target, policy) for each counted speed-up."""
    steps = len(lab.reference)
    edges, costs = _edges(lab), _costs(lab)
    for target in targets:
        count = int(steps / target)
        yield "LeMiCa", target, _policy(lab, lexicographic_minimax(edges, steps, count), 0)
        yield "DPCache", target, _policy(lab, least_cost(costs, steps, count), 1)


def lexicographic_minimax(edges: Edges, steps: int, count: int) -> list[int]:
    """The nodes, from 0 on, of the path of `count` edges to node `steps` whose weights, sorted
    from the largest, are least; edges that are not named do not exist.
    """
    best: dict[int, tuple[list[float], list[int]]] = {0: ([], [0])}
    for _ in range(count):
        reached: dict[int, tuple[list[float], list[int]]] = {}
        for (start, end), weight in edges.items():
            if start in best:
                weights, path = best[start]
                found = (sorted([*weights, weight], reverse=True), [*path, end])
                reached[end] = min(reached.get(end, found), found)
        best = reached
    return best[steps][1][:-1]


def least_cost(costs: Costs, steps: int, count: int) -> list[int]:
    """The nodes of the path 0, 1, ... of `count` computed steps, ending before node `steps`, of
    least summed cost[i, j, k] over its consecutive triples.
    """
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 1): (0.0, [0, 1])}
    for _ in range(count - 1):
        reached: dict[tuple[int, int], tuple[float, list[int]]] = {}
        for (i, j, k), cost in costs.items():
            if (i, j) in best:
                found = (best[i, j][0] + cost, [*best[i, j][1], k])
                reached[j, k] = min(reached.get((j, k), found), found)
        best = reached
    return min(found for (_, end), found in best.items() if end == steps)[1][:-1]


def _policy(lab: Lab, computed: Sequence[int], order: int) -> CachePolicy:
    steps = len(lab.reference)
    whole = [(0, lab.maker.num_blocks)]
    reused = {step: whole for step in range(steps) if step not in computed}
    return CachePolicy.explicit(reused, steps, order=order)


def _spans(steps: int) -> Iterator[tuple[int, int]]:
    """Every (start, end) that skips at most `LONGEST` steps."""
    for start in range(steps):
        for end in range(start + 1, min(start + LONGEST + 1, steps) + 1):
            yield start, end


def _request(lab: Lab) -> Request:
    return Request(load_prompts("calibration")[0], lab.seed)


def _edges(lab: Lab) -> Edges:
    """Final L1 error of every edge; none where nothing is skipped."""
    steps = len(lab.reference)
    starts = np.unique(np.linspace(0, steps - 2, MEASURED_STARTS).round().astype(int)).tolist()
    request = _request(lab)

    def error(start: int, end: int) -> float:
        def measure() -> dict[str, Any]:
            policy = _policy(lab, [s for s in range(steps) if not start < s < end], 0)
            cache = lab.block_cache(policy)
            made = lab.denoise(request, lab.reference, cache).latents.cpu()
            return {"l1": float((made - lab.full_latents(request)).abs().mean())}

        return float(lab.remembered(f"LeMiCa edge {start} {end}", measure)["l1"])

    edges: Edges = {}
    for skipped in range(1, LONGEST + 1):
        print(f"  LeMiCa: {skipped} steps skipped", flush=True)
        known = [start for start in starts if start + skipped < steps]
        logs = np.log([error(start, start + skipped + 1) for start in known])
        for start in range(steps - skipped):
            edges[start, start + skipped + 1] = float(np.exp(np.interp(start, known, logs)))
    return edges | {(start, start + 1): 0.0 for start in range(steps)}


class _Changes:
    """Runs all blocks and keeps the change of the whole stack at every step."""

    def __init__(self) -> None:
        self.changes: list[Tensor] = []

    def reset(self) -> None:
        self.changes.clear()

    def at(self, step: int, branch: str = "both") -> BlockLoop:
        def loop(layers: Sequence[Any], x: Tensor) -> Tensor:
            before = x
            for layer in layers:
                x = layer(x)
            self.changes.append((x - before).float().cpu())
            return x

        return loop


def _costs(lab: Lab) -> Costs:
    """The path-aware costs, from one plain video."""
    steps = len(lab.reference)
    recorder = _Changes()
    lab.denoise(_request(lab), lab.reference, recorder)
    changes = recorder.changes

    def cost(i: int, j: int, k: int) -> float:
        total = 0.0
        for step in range(j + 1, k):
            newest, older = forecast_weights([j, i], step)
            forecast = newest * changes[j] + older * changes[i]
            total += float((forecast - changes[step]).abs().mean())
        return total

    pairs = list(_spans(steps))
    ends: dict[int, list[int]] = {}
    for start, end in pairs:
        ends.setdefault(start, []).append(end)
    return {(i, j, k): cost(i, j, k) for i, j in pairs for k in ends.get(j, [])}
