"""`python -m tfspike.pretrained --workdir=RUN`: a finished run becomes trained weights, with their card."""

import sys

from tfspike.pretrained.packing import main

sys.exit(main())
