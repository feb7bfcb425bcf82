"""Train the second model: ``python -m tools.train_flow all --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["autoencoder", "decoder", "transformer", "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5000, help="updates of the transformer")
    args = parser.parse_args()
    if args.stage in ("autoencoder", "all"):
        from tools.train_flow.autoencoder import train_autoencoder

        train_autoencoder(args.out / "vae", args.seed)
    if args.stage in ("decoder", "all"):
        from tools.train_flow.autoencoder import refine_decoder

        refine_decoder(args.out / "vae", args.seed)
    if args.stage in ("transformer", "all"):
        from tools.train_flow.transformer import train_transformer

        train_transformer(args.out, args.seed, args.steps)


if __name__ == "__main__":
    main()
