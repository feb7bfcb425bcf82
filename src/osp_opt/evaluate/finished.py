"""What an evaluation that was killed had finished: a ledger beside the file it was to write."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from osp_opt.base.errors import FileError
from osp_opt.base.ledger import TrialLedger
from osp_opt.evaluate.measures import Measured
from osp_opt.evaluate.pairs import Pair
from osp_opt.generate.manifest import VideoFile

__all__ = ["Finished"]

_BLOCK = 1 << 20


class Finished:
    """Finished measurements by the content of the files they are of.

    Args:
        json_path: what the evaluation writes at its end; the ledger stands beside it till then.

    Raises FileError as TrialLedger.
    """

    def __init__(self, json_path: Path) -> None:
        self._ledger = TrialLedger(json_path.with_name(json_path.name + ".partial"))
        self._digests: dict[Path, str] = {}

    def pair(self, pair: Pair, lpips: bool) -> Measured | None:
        """What was measured of a pair, or None."""
        values = self._ledger.get(self._pair_key(pair, lpips))
        return None if values is None else Measured.from_json(pair, values)

    def add_pair(self, measured: Measured, lpips: bool) -> None:
        """Keep what was measured of a pair."""
        self._ledger.add(self._pair_key(measured.pair, lpips), measured.as_json())

    def jod(self, pair: Pair) -> float | None:
        """What ColorVideoVDP said of a pair, or None."""
        values = self._ledger.get(self._jod_key(pair))
        return None if values is None else float(values["jod"])

    def add_jod(self, pair: Pair, jod: float) -> None:
        """Keep what ColorVideoVDP said of a pair."""
        self._ledger.add(self._jod_key(pair), {"jod": jod})

    def vbench(self, dimension: str, videos: Sequence[VideoFile]) -> list[float] | None:
        """VBench's scores of these videos, or None."""
        values = self._ledger.get(self._set_key(dimension, videos))
        return None if values is None else list(values["scores"])

    def add_vbench(
        self, dimension: str, videos: Sequence[VideoFile], scores: Sequence[float]
    ) -> None:
        """Keep VBench's scores."""
        self._ledger.add(self._set_key(dimension, videos), {"scores": list(scores)})

    def clear(self) -> None:
        """Everything is in the evaluation's own file now."""
        self._ledger.path.unlink(missing_ok=True)

    def _pair_key(self, pair: Pair, lpips: bool) -> str:
        files = " ".join(self._digest(path) for path in pair.paths)
        return f"pair {files} {'lpips' if lpips else ''} {pair.prompt}"

    def _jod_key(self, pair: Pair) -> str:
        return f"jod {' '.join(self._digest(path) for path in pair.paths)}"

    def _set_key(self, dimension: str, videos: Sequence[VideoFile]) -> str:
        named = " ".join(f"{self._digest(video.path)} {video.prompt}" for video in videos)
        return f"vbench {dimension} {hashlib.sha256(named.encode()).hexdigest()}"

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            digest = hashlib.sha256()
            try:
                with path.open("rb") as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
            except OSError as error:
                raise FileError(f"{path}: cannot be read ({error.strerror})") from error
            self._digests[path] = digest.hexdigest()
        return self._digests[path]
