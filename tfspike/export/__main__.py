"""`python -m tfspike.export --workdir=RUN --format=saved_model,litert,nir,keras,onnx`: exports the network of a run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tfspike import output
from tfspike.errors import UserError
from tfspike.export.formats import FORMATS, save
from tfspike.runs import loading as run_loading

Loader = Callable[[str], tuple[Any, Any]]


def main(argv: Sequence[str] | None = None, load_run: Loader | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a mistake that is explained in one sentence.

    Args:
      argv: arguments; None takes the command line's.
      load_run: `workdir -> (model, info)`; None takes the library's.
    """
    parser = argparse.ArgumentParser(prog="python -m tfspike.export", description=(
        "Writes the network of a run as files that run without tfspike, and proves each by running it."))
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--format", default="saved_model", help=f"comma-separated, of: {', '.join(FORMATS)}")
    parser.add_argument("--out", help="folder to write to; the run's export/ unless given")
    parser.add_argument("--weights", default="float32", choices=("float32", "float16", "dynamic_range"),
                        help="how a LiteRT file stores weights")
    parser.add_argument("--target", default="nir", choices=("nir", "norse", "snntorch", "spikingjelly"),
                        help="which simulator's conventions a NIR file follows")
    args = parser.parse_args(argv)
    try:
        formats = [name.strip() for name in args.format.split(",") if name.strip()]
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
            raise UserError(f"--format takes a list of {', '.join(FORMATS)}; received {args.format!r}.")
        model, info = (load_run or _load_run)(args.workdir)
        report = save(model, info, formats, args.out or os.path.join(args.workdir, "export"), weights=args.weights,
                      target=args.target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for form, found in report.items():
        print(json.dumps({"format": form, **found}))
    return 0


def _load_run(workdir: str) -> tuple[Any, Any]:
    from tfspike import config

    config.read_run(workdir)  # refuses a folder without a run before TensorFlow is imported

    model, _, info, _ = run_loading.load_run(workdir, say=lambda line: print(line, file=sys.stderr))
    return model, info


if __name__ == "__main__":
    with output.guarded():
        raise SystemExit(main())
