"""Trains a spiking network: `python train.py --help`. The same as `tfspike train`.

Exit codes: 0 finished, 2 something the user can put right, 4 diverged or collapsed, 5 another worker is gone,
130 stopped by Ctrl-C, 143 by SIGTERM and 129 by a terminal that hung up (all saved: the same
command continues). Where its output is lost (`| head`) training goes on without.
"""

import sys

from tfspike.__main__ import train as main

if __name__ == "__main__":
    sys.exit(main())
