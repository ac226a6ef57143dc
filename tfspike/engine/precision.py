"""The same network in float32: where 16 bits would spoil it, and for formats that know no bfloat16."""

from __future__ import annotations

from typing import Any

import keras


def in_float32(model: Any) -> Any:
    """`model` itself where it computes in float32, else a copy that does, with the same weights."""
    policies = {layer.dtype_policy.name for layer in model.layers}
    if policies <= {"float32"}:
        return model
    copy = model.__class__.from_config(_replaced(model.get_config()))
    copy.set_weights(model.get_weights())
    return copy


def _replaced(config: Any) -> Any:
    if isinstance(config, dict):
        if config.get("class_name", "").endswith("DTypePolicy") and "config" in config:
            return keras.saving.serialize_keras_object(keras.DTypePolicy("float32"))
        return {key: _replaced(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_replaced(value) for value in config)
    return "float32" if isinstance(config, str) and config.startswith("mixed_") else config
