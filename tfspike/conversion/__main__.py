"""`python -m tfspike.conversion --run=FOLDER --method=NAME`: converts the ANN of a run to a spiking network.

The last line of stdout is JSON. Exit codes: 0, 2 for a mistake that is explained in one sentence, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfspike import output
from tfspike.config import flags
from tfspike.conversion import options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 0, or 2 with one sentence on stderr for what the user can put right."""
    with flags.user_errors():
        asked = options.parse(argv)
        output.start_tensorflow(asked.verbose)  # only after the flags are known to be right
        from tfspike.conversion import command

        say = (lambda line: None) if asked.json else print
        record = command.run(asked, say)
        say(command.describe(record))
        print(command.json_line(record))
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
