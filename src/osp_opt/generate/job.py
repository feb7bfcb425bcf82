"""`osp-opt sample`: one video (or image) per prompt and seed, with a schedule and a cache."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from osp_opt.base.artifacts import meta_path, read_meta, write_meta
from osp_opt.base.errors import FileError, InputError, PolicyError
from osp_opt.base.video import (
    Frames,
    read_image,
    video_frames,
    write_frames,
    write_grid,
    write_lossless,
)
from osp_opt.cache.policy import CachePolicy
from osp_opt.generate.found import with_found
from osp_opt.generate.listing import OVERVIEW, RAW_FRAMES
from osp_opt.generate.manifest import MANIFEST, add_take, free_path
from osp_opt.generate.memory import report_memory
from osp_opt.generate.prompts import default_prompts, given_prompts
from osp_opt.generate.provenance import check_provenance, timing_note
from osp_opt.generate.references import load_latents, save_latents
from osp_opt.options import SampleOptions, following
from osp_opt.pipelines.experts import check_experts
from osp_opt.pipelines.maker import Denoised, Maker, Request, open_maker
from osp_opt.sampling.recipe import Recipe, recipe_of
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext
from osp_opt.tiny.prompts import load_prompts

__all__ = ["requests_of", "run"]

GRID_LIMIT = 16  # more tiles than that are no overview
SAMPLE_PROMPTS = 4  # used when none are given
FATAL = ("model",)  # what was searched for another one means nothing here


@dataclass(frozen=True)
class _Video:
    """A video to make: what, and in which file."""

    request: Request
    path: Path

    @property
    def frames_path(self) -> Path:
        """Where its raw frames are kept, when they are."""
        return self.path.with_suffix(RAW_FRAMES)

    @property
    def latents_path(self) -> Path:
        """Where its latents are kept when it cannot be written."""
        return self.path.with_suffix(".latents.safetensors")


def run(options: SampleOptions, context: WorkerContext) -> None:
    """Make the videos that are not there yet; write manifest and grid; print where they are."""
    say = context.progress.say
    recipe = recipe_of(options)
    if recipe is not None:
        options = options.model_copy(update={"sampler": recipe.sampler})
    maker = open_maker(options, context)
    options, using = context.parallel.broadcast_object(with_found(options, maker))
    if using:
        say(using)
        recipe = recipe_of(options)
    schedule = _schedule(options, recipe, maker)
    policy = _policy(options, recipe)
    _check(options, maker, schedule, policy, context)
    suffix = ".png" if maker.makes_images else ".mp4"
    key = _key(options, maker, schedule, policy)
    videos = context.parallel.broadcast_object(
        [
            _Video(request, _place(options.out_dir, number, request, suffix, key))
            for number, request in enumerate(requests_of(options), start=1)
        ]
    )
    # Images are png, which loses nothing.
    raw = suffix == ".mp4" and (options.is_bundled if options.raw is None else options.raw)
    todo = context.parallel.broadcast_object([v for v in videos if not _whole(v, key, raw)])
    kept = context.parallel.broadcast_object([v for v in todo if _finished(v, key, v.latents_path)])
    if len(todo) < len(videos):
        say(f"{len(videos) - len(todo)} of {len(videos)} videos are there already")
    maker, context = maker.with_layout(context, len(todo), policy)
    for what, path in (("schedule", options.schedule), ("cache policy", options.cache)):
        if todo and path is not None and (note := timing_note(path, what, maker.timed_on)):
            say(note)
    if kept:
        say(f"{len(kept)} were denoised already and only have to be written")
    mine = context.parallel.share(todo)
    _make(mine, kept, maker, schedule, policy, key, raw, options, context)
    context.parallel.barrier()
    report_memory(maker, context)
    if context.parallel.is_main:
        _summarise(videos, options, maker, key, context)


def requests_of(options: SampleOptions) -> list[Request]:
    """Every (prompt, seed) asked for: prompts in order, each with its seeds."""
    prompts = given_prompts(options) or _bundled(options)
    prompts = prompts[: options.num_prompts]
    return [
        Request(prompt, options.seed + k)
        for prompt in prompts
        for k in range(options.seeds_per_prompt)
    ]


def _place(folder: Path, number: int, request: Request, suffix: str, key: dict[str, Any]) -> Path:
    """Its file, in a folder that it may share with videos made in other ways."""
    stem = f"{number:03d}-{request.slug}-s{request.seed}"
    return free_path(folder, stem, suffix, {**request.as_json(), **key})


def _bundled(options: SampleOptions) -> list[str]:
    own = load_prompts("sample") if options.is_bundled else ()
    known = [*own, *default_prompts(options, "verification")]
    return known[: options.num_prompts or SAMPLE_PROMPTS]


def _schedule(options: SampleOptions, recipe: Recipe | None, maker: Maker) -> TimestepSchedule:
    if recipe is not None:
        return TimestepSchedule.from_recipe(recipe)
    if options.schedule is None:
        return maker.schedule(options.steps)
    return TimestepSchedule.from_file(options.schedule, maker.scale)


def _policy(options: SampleOptions, recipe: Recipe | None) -> CachePolicy | None:
    if recipe is not None:
        return recipe.policy
    return None if options.cache is None else CachePolicy.from_file(options.cache)


def _check(
    options: SampleOptions,
    maker: Maker,
    schedule: TimestepSchedule,
    policy: CachePolicy | None,
    context: WorkerContext,
) -> None:
    """Refuse what does not fit before anything is sampled."""
    calls = maker.call_timesteps(schedule)
    setting = maker.setting(schedule)
    say = context.progress.say
    for path, what, fatal in (
        (options.recipe, "recipe", FATAL),
        (options.schedule, "schedule", FATAL),
        (options.cache, "cache policy", (*FATAL, "steps")),  # it names steps by number
    ):
        if path is not None:
            check_provenance(path, what, setting, fatal, options.allow_mismatch, say)
    if policy is not None:
        try:
            policy.validate(maker.num_blocks, len(calls))
            check_experts(policy, calls, maker.boundary)
            if policy.guidance is not None and not maker.reuses_guidance:
                raise PolicyError("it reuses guidance, and there is none here to reuse")
        except PolicyError as error:
            raise PolicyError(f"{options.cache or options.recipe}: {error}") from error
        say(
            f"cache: {policy}; {policy.speedup(maker.num_blocks, len(calls)):.2f}x fewer block "
            f"evaluations, {maker.cache_bytes(policy, options) / 2**20:.3g} MiB held at most"
        )


def _key(
    options: SampleOptions,
    maker: Maker,
    schedule: TimestepSchedule,
    policy: CachePolicy | None,
) -> dict[str, Any]:
    """What, besides prompt and seed, decides a video; kept beside each."""
    return {
        **maker.how(schedule),
        "cache": None if policy is None else policy.to_json(),
        "cache_dtype": options.cache_dtype,
        "tiling": [options.enable_tiling, options.tile_overlap_factor, options.save_memory],
    }


def _finished(
    video: _Video, key: dict[str, Any], path: Path | None = None
) -> dict[str, Any] | None:
    """The sidecar of a finished video (or of `path`) that was made in this very way, or None."""
    path = path or video.path
    if not path.is_file():
        return None
    meta = read_meta(path)
    wanted = {**video.request.as_json(), **key}
    if meta is None or any(meta.get(name) != value for name, value in wanted.items()):
        return None
    return meta if isinstance(meta.get("denoising_seconds"), (int, float)) else None


def _whole(video: _Video, key: dict[str, Any], raw: bool) -> bool:
    return _finished(video, key) is not None and (not raw or video.frames_path.is_file())


def _make(
    videos: list[_Video],
    kept: list[_Video],
    maker: Maker,
    schedule: TimestepSchedule,
    policy: CachePolicy | None,
    key: dict[str, Any],
    raw: bool,
    options: SampleOptions,
    context: WorkerContext,
) -> None:
    timesteps = maker.call_timesteps(schedule)
    cache = None if policy is None else maker.block_cache(policy, options)
    maker.prefetch_prompts(video.request.prompt for video in videos)
    if not videos:
        return
    say = context.progress.detail
    with (
        context.progress.task("sampling", len(videos) * len(timesteps)) as task,
        # Encoding a file needs no device: the next video is denoised meanwhile.
        ThreadPoolExecutor(1, "osp-opt-writer") as writer,
    ):
        written: Future[str] | None = None
        for video in videos:
            if video in kept:
                made = _kept(video, key)
                task.advance(len(timesteps))
            else:
                made = maker.denoise(video.request, schedule, cache, lambda *_: task.advance())
            frames = maker.decode(made.latents, video.request.seed)
            if not context.parallel.is_leader:
                continue
            if written is not None:
                say(written.result())  # or its error, before another video is begun
            timing = {"denoising_seconds": made.seconds, "timed_on": made.timed_on}
            meta = {**video.request.as_json(), **key, **timing}
            written = writer.submit(_write, video, made.latents, frames, maker.fps, raw, meta)
        if written is not None:
            say(written.result())


def _kept(video: _Video, key: dict[str, Any]) -> Denoised:
    """What an earlier run denoised and could not write."""
    meta = _finished(video, key, video.latents_path)
    if meta is None:
        raise FileError(f"{video.latents_path}: gone; run sample again to make that video")
    seconds, timed_on = float(meta["denoising_seconds"]), meta.get("timed_on")
    return Denoised(load_latents(video.latents_path), seconds, timed_on)


def _write(
    video: _Video,
    latents: Tensor,
    frames: Frames,
    fps: float,
    raw: bool,
    meta: dict[str, Any],
) -> str:
    """All files of a video, the sidecar last: with it the video counts as finished.

    A video that cannot be written leaves its latents, which took the time.
    """
    try:
        if raw:
            write_lossless(video.frames_path, frames, fps)
        write_frames(video.path, frames, fps)
        write_meta(video.path, meta)
    except InputError as error:
        try:
            save_latents(video.latents_path, latents)
            write_meta(video.latents_path, meta)
        except FileError:
            raise error from None
        raise FileError(
            f"{error}; its latents are kept: mend that, then run the same command again, which "
            "only has to write it"
        ) from error
    for leftover in (video.latents_path, meta_path(video.latents_path)):
        leftover.unlink(missing_ok=True)
    return f"{video.path}: denoised in {meta['denoising_seconds']:.2f} s"


def _summarise(
    videos: list[_Video],
    options: SampleOptions,
    maker: Maker,
    key: dict[str, Any],
    context: WorkerContext,
) -> None:
    """List the videos in the folder's manifest, show them side by side, say where they are."""
    folder = options.out_dir
    entries: list[dict[str, Any]] = []
    seconds: list[float] = []
    for video in videos:
        meta = _finished(video, key)
        if meta is None:
            raise FileError(f"{video.path}: gone or damaged; run sample again to make it")
        seconds.append(float(meta["denoising_seconds"]))
        entries.append(
            {
                "file": video.path.name,
                **video.request.as_json(),
                "denoising_seconds": seconds[-1],
                "timed_on": meta.get("timed_on"),
                **({"frames": video.frames_path.name} if video.frames_path.is_file() else {}),
            }
        )
    add_take(folder, {"command": "sample", **key}, entries)
    place = folder
    if 1 < len(videos) <= GRID_LIMIT:
        place = free_path(folder, OVERVIEW, videos[0].path.suffix, key)
        tiles = [
            read_image(v.path)[None] if v.path.suffix == ".png" else video_frames(v.path)
            for v in videos
        ]
        write_grid(place, tiles, maker.fps)
        write_meta(place, {"shows": [entry["file"] for entry in entries], **key})
    elif len(videos) == 1:
        place = videos[0].path
    context.progress.result(
        [
            f"{len(videos)} video{'s' if len(videos) > 1 else ''}: {place} "
            f"(denoising {median(seconds):.2f} s a video, median)"
        ],
        {
            "videos": [str(video.path) for video in videos],
            "shown": str(place),
            "denoising_seconds": seconds,
            "schedule": None if options.schedule is None else str(options.schedule),
            "cache": None if options.cache is None else str(options.cache),
        },
        _following(options),
    )


def _following(options: SampleOptions) -> str:
    """What one does with these videos: compare them with the original's, or make faster ones."""
    baseline, usual = options.workdir / "baseline", options.workdir / "samples"
    fast = any(x is not None for x in (options.schedule, options.cache, options.recipe))
    if fast and (baseline / MANIFEST).is_file() and baseline != options.out_dir:
        sides = ("--reference", str(baseline), "--candidate", str(options.out_dir))
        return following(options, "evaluate", *sides)
    if fast:
        return following(options, "sample", "--plain", "--out", str(baseline))
    if (usual / MANIFEST).is_file() and usual != options.out_dir:
        return following(options, "evaluate", "--reference", str(options.out_dir))
    return following(options, "calibrate")
