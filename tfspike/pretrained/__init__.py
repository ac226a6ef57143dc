"""Trained weights that come with the library; docs/models.md has their cards.

    model, config, info, _ = pretrained.load("lenet_mnist")              # for inference, like a run's network
    model = pretrained.load("lenet_mnist", fold=False)[0]                # to go on training
    python eval.py --weights=lenet_mnist --data_dir=DIR                  # the model card's accuracy again
    python -m tfspike.pretrained --workdir=RUN                           # a run becomes an entry, with its card
"""

from tfspike.faces import on_use

_HOME = {"available": "files", "check_name": "files", "load": "networks",
         "PackOptions": "packing", "pack": "packing"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
