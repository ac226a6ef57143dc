"""What of Keras' global settings the layers and models need: refused in one sentence where they differ."""

from __future__ import annotations

import keras

from tfspike.checks import check_backend
from tfspike.errors import UserError

check_backend(keras.backend.backend())


def check_image_data_format() -> None:
    """Raises UserError unless images are `[H, W, C]` to Keras' layers."""
    if keras.config.image_data_format() != "channels_last":
        raise UserError("Networks take images as [H, W, C], so Keras' image_data_format must be \"channels_last\". "
                        f"Received: {keras.config.image_data_format()!r}; call "
                        "keras.config.set_image_data_format(\"channels_last\").")
