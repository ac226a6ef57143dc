"""Tests a trained network from its workdir alone: `python eval.py --help`. The last line of stdout is JSON."""

from __future__ import annotations

import os
import sys

from tfspike import pretrained
from tfspike.config import flags
from tfspike.evaluation.options import parse_eval

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> int:
    with flags.user_errors():
        options = parse_eval(whole_name=pretrained.check_name)
        from tfspike.evaluation import command  # loads TensorFlow: only after the flags are known to be right

        return command.run(options, pretrained.load)
    return 2


if __name__ == "__main__":
    sys.exit(main())
