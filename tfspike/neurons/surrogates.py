"""Surrogate derivatives: smooth stand-ins for the derivative of the spike function, which is 0 almost everywhere.

A neuron fires where u > theta. Its spike is a step of x = (u - theta) gain, and the derivative of a step says nothing;
a surrogate is the derivative h(x) of a smooth step H(x) that goes from 0 to 1 around x = 0:

| name          | h(x)                          | H(x)                                | source |
|---------------|-------------------------------|-------------------------------------|---|
| "rectangular" | 1 where abs(x) < 1/2, else 0  | x + 1/2, clipped to 0..1            | Wu et al. 2018 (STBP) |
| "triangular"  | max(0, 1 - abs(x))            | quadratic from -1 to 0 and 0 to 1   | Esser et al. 2016; Bellec 2018 |
| "arctan"      | 1 / (1 + (pi x)^2)            | 1/2 + arctan(pi x) / pi             | Fang et al. 2021 |
| "sigmoid"     | 4 S(4 x) (1 - S(4 x))         | S(4 x), the logistic function       | Zenke and Ganguli 2018 |

Each has h(0) = 1 and an area of 1. A width stretches it, h(x / width), and keeps its peak. In a normalised ResNet20 at
T = 4 the gradient of the weights keeps its size from the last layer to the first (largest over smallest norm below 30)
with "event" at width 1 ("triangular", "arctan", "sigmoid"), and with "rate", whose slope is the mean of h over the
window, at 2 for "arctan" and 1.5 for "triangular"; narrower it fades, wider it explodes.

"tandem" and "tandem_clipped" are none of them: the slope of tandem learning (Wu et al. 2021), for "rate" alone, is that
of a ReLU of the mean current, 1 where it is above 0 (clipped: and below the threshold), for neurons that lose nothing.

"leak_aware" is none either: the slope of Lee et al. 2020 is one number per neuron and window, from its spikes alone
(`tfspike.gradients.slope`), and 0 for a neuron that never fired. A surrogate looks at the membrane potential, so a
neuron that came near its threshold learns even where it did not fire.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfspike.checks import check_choice
from tfspike.errors import UserError, first_line
from tfspike.neurons.custom_gradient import WithGradient, custom_gradient

LEAK_AWARE = "leak_aware"


def _triangle(x: tf.Tensor) -> tf.Tensor:
    x = tf.clip_by_value(x, -1.0, 1.0)
    return tf.where(x < 0.0, tf.square(1.0 + x) / 2.0, 1.0 - tf.square(1.0 - x) / 2.0)


def _bell(x: tf.Tensor) -> tf.Tensor:
    s = tf.sigmoid(4.0 * x)
    return 4.0 * s * (1.0 - s)


Function = Callable[[tf.Tensor], tf.Tensor]

DERIVATIVES: dict[str, Function] = {
    "rectangular": lambda x: tf.cast(tf.abs(x) < 0.5, x.dtype),
    "triangular": lambda x: tf.maximum(1.0 - tf.abs(x), 0.0),
    "arctan": lambda x: 1.0 / (1.0 + tf.square(math.pi * x)),
    "sigmoid": _bell,
}

PRIMITIVES: dict[str, Function] = {
    "rectangular": lambda x: tf.clip_by_value(x + 0.5, 0.0, 1.0),
    "triangular": _triangle,
    "arctan": lambda x: 0.5 + tf.atan(math.pi * x) / math.pi,
    "sigmoid": lambda x: tf.sigmoid(4.0 * x),
}

TANDEM = ("tandem", "tandem_clipped")
SURROGATES = (LEAK_AWARE, *DERIVATIVES, *TANDEM)


def names() -> tuple[str, ...]:
    """What layers and models take for `surrogate`: the library's own, and those that were registered."""
    return (LEAK_AWARE, *DERIVATIVES, *TANDEM)


def check_name(surrogate: Any) -> str:
    """Returns `surrogate`; raises UserError where it is none of `names()`, that lists them."""
    try:
        return str(check_choice("surrogate", surrogate, names()))
    except UserError as error:
        raise UserError(f"{error} One of your own is registered before it is named, also by a .keras file: "
                        "tfspike.surrogates.register(name, function).") from None


_registered: collections.Counter[str] = collections.Counter()  # how often each name of the user's was


def registered(name: str) -> int:
    """A number that changes when another function is registered under this name: what was compiled with the one before
    is not what a neuron that names it now asks for."""
    return _registered[name]


def register(name: str, function: Function) -> None:
    """Makes a surrogate of your own legal, under both gradients: `LIF(surrogate=name)`.

        surrogates.register("superspike", lambda x: 1 / (1 + 10 * tf.abs(x)) ** 2)

    A process that loads a .keras file with it must register it first. A name of your own may be registered again, as a
    notebook does whose cell is run twice: networks take the new function from then on, but for what was compiled before
    (a model that was trained goes on with the old one until `compile`).

    Args:
      name: none of the library's, `SURROGATES`.
      function: h(x), elementwise and in the dtype of x, of x = (u - threshold) / threshold: of TensorFlow operations,
        finite for any x. A peak of 1 and an area of 1, as those of the table have, keep gradients as long as they were.

    Raises:
      UserError: the name is taken, or `function` is none, or not of such a kind.
    """
    if not isinstance(name, str) or not name or name in SURROGATES:
        raise UserError(f"`name` must be a text other than {', '.join(SURROGATES)}. Received: name={name!r}.")
    if not callable(function):
        raise UserError(f"`function` must be a function of a tensor. Received: function={function!r}.")
    _try(name, function)
    DERIVATIVES[name] = function
    _registered[name] += 1


def _try(name: str, function: Function) -> None:
    """Refuses what is not elementwise, finite and in the dtype of x, before a training meets it."""
    with tf.init_scope():
        x = tf.constant([[-3.0, -0.5, 0.0], [0.5, 3.0, 100.0]])
        try:
            h = tf.convert_to_tensor(tf.function(function, autograph=False)(x))
        except Exception as error:  # whatever a function of the user's raises
            raise UserError(f"the surrogate {name!r} must be made of TensorFlow operations on one tensor; it fails "
                            f"({first_line(error)}).") from error
        if h.dtype != x.dtype or h.shape != x.shape or not bool(tf.reduce_all(tf.math.is_finite(h))):
            raise UserError(f"the surrogate {name!r} must give a finite number for every element, in the dtype of x; "
                            f"of x={x.numpy().tolist()} ({x.dtype.name}) it makes {h.numpy().tolist()} "
                            f"({h.dtype.name}).")


def derivative(name: str, x: tf.Tensor, width: float = 1.0) -> tf.Tensor:
    """h(x / width), elementwise, in the dtype of `x`.

    Args:
      name: a key of `DERIVATIVES`.
      x: distance of the membrane potential from the threshold, in thresholds.
      width: above 0.

    Examples:
      >>> print(derivative("triangular", tf.constant([-2.0, -0.5, 0.0, 0.25])).numpy())
      [0.   0.5  1.   0.75]
    """
    return DERIVATIVES[name](x / width)


def spike(name: str, x: tf.Tensor, width: float = 1.0) -> tf.Tensor:
    """1 where x > 0, else 0, in the dtype of `x`; its gradient is h(x / width). For neurons of one's own making.

    Args:
      name: a key of `DERIVATIVES`.
      x: distance of the membrane potential from the threshold, in thresholds.
      width: above 0.
    """

    @custom_gradient
    def step(x: tf.Tensor) -> WithGradient:
        return tf.cast(x > 0.0, x.dtype), lambda upstream: upstream * derivative(name, x, width)

    return step(x)
