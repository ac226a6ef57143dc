"""Keras models whose steps are traced once: `fit`, `evaluate` and `predict` wait for it once, and again where a
constant of a layer has changed or a first step has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfspike.models import constants, first_trace


class TracedOnce(keras.Model):
    """A Keras model that traces a step once, and anew whenever constants of its layers have changed, between two
    batches too.

    A step that has failed while it was traced is traced anew by the next call: Keras would keep what it has made for
    the targets that did not fit, and refuse those that do.
    """

    def make_train_function(self, force: bool = False) -> Any:
        """`keras.Model.make_train_function`; constants that are changed count from the next batch on."""
        prepare = self._preparing(True) if self._is_as_made("train_step") else None
        return self._traced_once("train_function", super().make_train_function, force, prepare)

    def make_test_function(self, force: bool = False) -> Any:
        """`keras.Model.make_test_function`; constants that are changed count from the next batch on."""
        prepare = self._preparing(False) if self._is_as_made("test_step") else None
        return self._traced_once("test_function", super().make_test_function, force, prepare)

    def make_predict_function(self, force: bool = False) -> Any:
        """`keras.Model.make_predict_function`; constants that are changed count from the next batch on."""
        return self._traced_once("predict_function", super().make_predict_function, force)

    def _preparing(self, trains: bool) -> Callable[[Any], None]:
        return lambda batches: first_trace.prepare(self, self._lazy(), batches, trains)

    def _is_as_made(self, step: str) -> bool:
        """Whether a subclass leaves a step, and what it calls, as the library has them."""
        made = next(kind for kind in type(self).__mro__ if "_is_made_here" in vars(kind))
        return all(getattr(type(self), name) is getattr(made, name) for name in ("call", step, "compute_metrics"))

    def _traced_once(self, name: str, make: Callable[..., Any], force: bool,
                     prepare: Callable[[Any], None] | None = None) -> Any:
        """A function of Keras' in an attribute of this name, which Keras sets to None where it must be made again.

        Args:
          name: of the attribute.
          make: makes it, `keras.Model.make_train_function` or its like.
          force: make it again in any case.
          prepare: makes before what Keras would make in its first step, of the batches that it is given.
        """
        if getattr(self, name) is not None and not force:
            return getattr(self, name)
        traced: Any = None
        traced_for: list[Any] = []
        works = False

        def function(*args: Any) -> Any:
            nonlocal traced, traced_for, works
            now = constants.of(self, self._lazy())
            if traced is None and prepare is not None:
                prepare(args[0])
            if traced is None or now != traced_for:
                make(force=True)
                traced, traced_for, works = getattr(self, name), now, False
                setattr(self, name, function)
            try:
                found = traced(*args)
            except BaseException:
                if not works:
                    traced = None
                    first_trace.forget(self)
                raise
            works = True
            return found

        setattr(self, name, function)
        return function

    def _lazy(self) -> dict[str, Any]:
        # Keras tracks attributes of a model; a plan refers to layers that are tracked already
        return self.__dict__.setdefault("_derived", {})
