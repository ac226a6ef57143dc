"""Trains a spiking network: `python train.py --help`.

Exit codes: 0 finished, 2 something the user can put right, 4 diverged or collapsed, 5 another worker is gone,
130 stopped by Ctrl-C, 143 by SIGTERM and 129 by a terminal that hung up (all saved: the same
command continues). Where its output is lost (`| head`) training goes on without.
"""

from __future__ import annotations

import os
import sys

from tfspike.config import flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on its own start


def main() -> int:
    with flags.user_errors():
        config, options, warnings, notes = flags.parse()
        for warning in warnings:
            print(f"Warning: {warning}", file=sys.stderr)
        for note in notes:
            print(note, flush=True)
        from tfspike import training  # loads TensorFlow: only after the flags are known to be right

        return training.run(config, options)
    return 2


if __name__ == "__main__":
    sys.exit(main())
