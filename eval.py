"""Tests a trained network from its workdir alone: `python eval.py --help`. The last line of stdout is JSON.

The same as `tfspike eval`.
"""

import sys

from tfspike.__main__ import evaluate as main

if __name__ == "__main__":
    sys.exit(main())
