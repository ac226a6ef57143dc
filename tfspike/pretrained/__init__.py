"""Trained weights that come with the library; docs/models.md has their cards.

    model, config, info, _ = pretrained.load("lenet_mnist")              # for inference, like a run's network
    model = pretrained.load("lenet_mnist", fold=False)[0]                # to go on training
    python train.py --model=vgg9 --init_from=vgg9_cifar10 ...            # the same from the command line
    python eval.py --weights=lenet_mnist --data_dir=DIR                  # the model card's accuracy again
    python -m tfspike.pretrained --workdir=RUN                           # a run becomes an entry, with its card
"""

from typing import TYPE_CHECKING

from tfspike.faces import on_use
from tfspike.runs.library import check_name as check_name
from tfspike.weights import available as available

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.pretrained.networks import load as load
    from tfspike.pretrained.packing import PackOptions as PackOptions
    from tfspike.pretrained.packing import pack as pack

_HOME = {"load": "networks", "PackOptions": "packing", "pack": "packing"}

__all__ = sorted([*_HOME, "available", "check_name"])

__getattr__ = on_use(__name__, _HOME)
