"""`python -m tfspike.conversion --run=FOLDER --method=data|spike_norm`: converts the ANN of a run to a spiking network.

The last line of stdout is JSON. Exit codes: 0, or 2 for a mistake that is explained in one sentence.
"""

from __future__ import annotations

import os
import sys

from tfspike.config import flags
from tfspike.conversion import options

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> int:
    with flags.user_errors():
        asked = options.parse()
        from tfspike.conversion import command  # loads TensorFlow: only after the flags are known to be right

        say = (lambda line: None) if asked.json else print
        record = command.run(asked, say)
        say(command.describe(record))
        print(command.json_line(record))
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
