"""`python -m tfspike.stdp [flags of train.py]`: first weights for the network that these flags make.

Exit codes: 0, 2 for a mistake that is explained in one sentence, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfspike import output
from tfspike.config import flags
from tfspike.stdp import options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 0, or 2 with one sentence on stderr for what the user can put right."""
    with flags.user_errors():
        config, asked, training = options.parse(argv)
        output.start_tensorflow(asked.verbose)  # only after the flags are known to be right
        from tfspike.stdp import command

        command.run(config, asked, training)
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
