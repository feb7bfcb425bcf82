"""``python -m benchmarks.speed COMMAND``: prints results as JSON, and keeps them with --out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from osp_opt.base.artifacts import write_json

app = typer.Typer(no_args_is_help=True, add_completion=False)
Out = Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repeats, interleaved; medians are reported.")]


def report(results: dict[str, Any], out: Path | None) -> None:
    typer.echo(json.dumps(results, indent=2))
    if out is not None:
        write_json(out, results)


@app.command()
def cpu(
    subjects: Annotated[list[str] | None, typer.Argument(help="bundled, mid-size.")] = None,
    repeats: Repeats = 9,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compiled blocks too.")] = False,
    out: Out = None,
) -> None:
    """The original's step against osp-opt's on a CPU."""
    from benchmarks.speed import cpu as part

    report(part.run(subjects or list(part.SUBJECTS), repeats, compiled), out)


@app.command()
def vae(repeats: Repeats = 5, device: str = "cpu", out: Out = None) -> None:
    """Ways of decoding with the bundled autoencoder."""
    from benchmarks.speed import vae as part
    from osp_opt.system.device import Device

    report(part.run(repeats, Device.open(device, dtype="float32")), out)


@app.command()
def full_size(
    shapes: Annotated[
        list[str] | None, typer.Argument(help="1x480p, 29x480p, 29x720p, 93x720p.")
    ] = None,
    repeats: Repeats = 7,
    warm_ups: Annotated[int, typer.Option(min=0, help="Rounds that do not count.")] = 3,
    small: Annotated[bool, typer.Option("--small", help="A toy, to see it run.")] = False,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compile the blocks.")] = False,
    device: str = "auto",
    dtype: str = "auto",
    attention: Annotated[str, typer.Option(help="As of the commands.")] = "auto",
    out: Out = None,
) -> None:
    """The full-size model on one device."""
    from benchmarks.speed import full_size as part
    from osp_opt.system.device import Device

    opened = Device.open(device, dtype=dtype, attention=attention)
    rounds = part.Rounds(repeats, warm_ups)
    report(part.run(shapes or list(part.SHAPES), rounds, small, compiled, opened), out)


@app.command()
def attention(
    shapes: Annotated[list[str] | None, typer.Argument(help="As of full-size.")] = None,
    repeats: Repeats = 9,
    device: str = "auto",
    dtype: str = "auto",
    out: Out = None,
) -> None:
    """Kernels of self-attention at full size."""
    from benchmarks.speed import attention as part
    from benchmarks.speed.full_size import SHAPES
    from osp_opt.system.device import Device

    report(part.run(shapes or list(SHAPES), repeats, Device.open(device, dtype=dtype)), out)


@app.command()
def checkpoint(
    folder: Annotated[Path, typer.Argument(help="Where to write it: 7 GB.")],
    name: Annotated[str, typer.Option(help="Which of the released ones it is like.")] = "29x480p",
) -> None:
    """Write a full-size checkpoint of random weights, for trying the commands on."""
    from benchmarks.speed import checkpoint as part
    from benchmarks.speed.full_size import SHAPES

    if name not in SHAPES:
        raise typer.BadParameter(f"{name}: choose {', '.join(SHAPES)}", param_hint="--name")
    part.write(folder, name, SHAPES[name])


@app.command()
def scaling(
    larger: Annotated[bool, typer.Option("--larger", help="Up to 7,200 tokens.")] = False,
    repeats: Repeats = 5,
    plot: Annotated[Path | None, typer.Option(help="Write the figure here (PNG).")] = None,
    out: Out = None,
) -> None:
    """Time and memory against tokens; communication of Ulysses, counted."""
    from benchmarks.speed import scaling as part

    report(part.run(larger, repeats, [2, 4, 8], plot), out)


@app.command()
def predict(
    tera_operations: Annotated[float, typer.Option(help="10^12 per second and device.")],
    giga_bytes: Annotated[float, typer.Option(help="10^9 per second and device, one way.")],
    out: Out = None,
) -> None:
    """Steps on 1, 8 and 64 devices, from counted work and these two figures."""
    from benchmarks.speed import predict as part

    report(part.run(tera_operations * 1e12, giga_bytes * 1e9), out)


@app.command()
def startup(repeats: Repeats = 3, out: Out = None) -> None:
    """From the command line to the first denoising step."""
    from benchmarks.speed import startup as part

    report(part.run(repeats), out)


@app.command()
def waiting(repeats: Repeats = 2, out: Out = None) -> None:
    """How OpenMP's threads wait, alone and on a busy machine."""
    from benchmarks.speed import waiting as part

    report(part.run(repeats), out)


if __name__ == "__main__":
    app()
