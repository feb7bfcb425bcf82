"""Train the bundled model from scratch: ``python -m osp_opt.tiny.train all --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from osp_opt.tiny.train_vae import train_vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["vae", "transformer", "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.stage in ("vae", "all"):
        train_vae(args.out / "vae", args.seed)


if __name__ == "__main__":
    main()
