"""`python -m tfspike.export --workdir=RUN --format=saved_model,litert,nir,keras,onnx`: exports the network of a run.

Writes it as files that run without tfspike, and proves each by running it: a line of JSON on stdout for every file.
Exit codes: 0, 2 for a mistake that is explained in one sentence, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from tfspike import config, output
from tfspike.config import flags
from tfspike.export import formats, options
from tfspike.runs import loading


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 0, or 2 with one sentence on stderr for what the user can put right."""
    with flags.user_errors():
        asked = options.parse(argv)
        config.read_run(asked.workdir)  # refuses a folder without a run before TensorFlow is imported
        output.start_tensorflow(asked.verbose)
        model, _, info, _ = loading.load_run(asked.workdir, say=lambda line: print(line, file=sys.stderr))
        report = formats.save(model, info, asked.format, asked.out or os.path.join(asked.workdir, "export"),
                              weights=asked.weights, target=asked.target)
        for form, found in report.items():
            print(json.dumps({"format": form, **found}))
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
