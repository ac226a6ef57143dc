"""The data sets that are known by name, as a table: what is in them, where they are from, how they are normalised.

Settings, loading and model cards read their facts here. Needs neither TensorFlow nor NumPy.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set is from.

    Attributes:
      title: its name and what to cite.
      address: on the web.
      licence: of the data, in words.
    """

    title: str
    address: str
    licence: str


class Normalisation(NamedTuple):
    """x = (p / 255 - mean) / std of pixels p from 0 to 255; one number per channel, or one for all of them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is known of a data set; the defaults are those of a set of which nothing is known.

    Attributes:
      source: where it is from, if its licence is known here.
      num_train, num_test: records of the whole set; 0 where they are not known.
      num_extra: records of its split "extra", further and easier training images; 0 without such a split.
      event_based: its samples are spike trains instead of images.
      normalisation: constants; None takes the mean of the training images (`tfspike.datasets.describe`).
      augment: training crops and mirrors its images unless a run says otherwise.
      mirrored: augmentation may mirror them; a mirror image of a digit is none.
      own: the user's, read from the folder or file that was named.
    """

    source: Source | None = None
    num_train: int = 0
    num_test: int = 0
    num_extra: int = 0
    event_based: bool = False
    normalisation: Normalisation | None = None
    augment: bool = False
    mirrored: bool = True
    own: bool = False

    @property
    def by_class(self) -> bool:
        """Whether its records may lie in the order of their classes, as those of the user's own often do: the first
        ones would be all of one, so a part that stands for all of them is taken from everywhere."""
        return self.own


_MNIST = Dataset(
    Source("MNIST (LeCun, Bottou, Bengio, Haffner, Proceedings of the IEEE 86(11):2278-2324, 1998)",
           "http://yann.lecun.com/exdb/mnist/", "CC BY-SA 3.0"),
    60_000, 10_000, normalisation=Normalisation((0.0,), (2.0,)), mirrored=False)

CATALOGUE: dict[str, Dataset] = {
    "mnist_subset": _MNIST,  # 6,000 + 1,000 images that come with the library
    "mnist": _MNIST,
    "fashion_mnist": Dataset(
        Source("Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747, 2017)",
               "https://github.com/zalandoresearch/fashion-mnist", "MIT"),
        60_000, 10_000, normalisation=_MNIST.normalisation),
    "cifar10": Dataset(
        Source("CIFAR-10 (Krizhevsky, \"Learning multiple layers of features from tiny images\", 2009)",
               "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated"),
        50_000, 10_000, augment=True,
        # of Lee et al. 2020
        normalisation=Normalisation((0.4914, 0.4822, 0.4465), (0.557, 0.549, 0.5534))),
    "cifar100": Dataset(augment=True),
    "svhn_cropped": Dataset(
        Source("SVHN, cropped digits (Netzer, Wang, Coates, Bissacco, Wu, Ng, \"Reading digits in natural images with "
               "unsupervised feature learning\", 2011)", "http://ufldl.stanford.edu/housenumbers/",
               "none stated; the images are for non-commercial use only, and the paper is to be cited"),
        73_257, 26_032, 531_131, mirrored=False),
    "nmnist": Dataset(event_based=True),
    "folder": Dataset(own=True),  # pictures, a folder per class
    "npz": Dataset(own=True),  # arrays of images and labels
    "recordings": Dataset(own=True, event_based=True),  # of an event camera, a folder per class
}
"""`{canonical name: what is known of it}`."""

ALIASES = {"svhn": "svhn_cropped"}
"""`{other name: canonical name}`."""

KNOWN = tuple(CATALOGUE)
WITH_EVENTS = tuple(name for name, dataset in CATALOGUE.items() if dataset.event_based)
OWN = tuple(name for name, dataset in CATALOGUE.items() if dataset.own)
WITH_EXTRA = tuple(name for name, dataset in CATALOGUE.items() if dataset.num_extra)


def facts(name: str) -> Dataset:
    """What is known of the data set of this canonical name; of one that is not in the catalogue, the defaults."""
    return CATALOGUE.get(name, Dataset())
