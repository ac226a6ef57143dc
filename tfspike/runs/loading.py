"""The network of a run again, from its folder."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from tfspike import config as config_lib
from tfspike.config.config import FIELDS, SPIKING_ONLY, Config
from tfspike.errors import UserError, first_line
from tfspike.models import variables
from tfspike.runs.checkpoints import Checkpoint
from tfspike.runs.provenance import continuing_command, to_copy
from tfspike.runs.standing import kernel_of, open_checkpoint, standing
from tfspike.runs.starting import check_unedited
from tfspike.runs.workdir import CONVERTED, Say, run_metadata


def build_model(config: Config, info: Any, timesteps: int | None = None) -> Any:
    """The network of a resolved configuration for a data set's images, with its first weights.

    Args:
      config: resolved settings.
      info: a `datasets.DatasetInfo`.
      timesteps: another window than the configuration's.
    """
    from tfspike.models import networks, own
    from tfspike.models.settings import NetworkSettings

    shared = {field.name for field in dataclasses.fields(NetworkSettings)} & FIELDS.keys() - {"timesteps"}
    if not config.is_spiking:
        if timesteps is not None:
            raise UserError(f"--timesteps={timesteps} is the window of a spiking network, and {config.workdir} holds "
                            "an ANN (--neuron=relu); leave it out, or convert the ANN: "
                            f"{to_copy('convert', run=str(config.workdir))}")
        shared -= set(SPIKING_ONLY)
    others = {name: None if value == "none" else value for name in shared for value in [getattr(config, name)]}
    others["neuron"] = own.load(config.surrogate, config.neuron)
    if config.earliest == "largest":  # of latency codes alone
        others["largest_input"] = info.largest
    return networks.build(NetworkSettings.of(config.model, tuple(info.image_shape), info.num_classes,
                                             timesteps or config.timesteps, dtype=config.precision, **others))


def load_run(workdir: str, which: str = "best", timesteps: int | None = None, say: Say = print,
             fold: bool = True) -> tuple[Any, Config, Any, Checkpoint]:
    """A trained network from its workdir alone.

    Args:
      workdir: folder of a run.
      which: "best" by validation, or "last".
      timesteps: another window than the run's.
      say: takes warnings.
      fold: whether normalisation is folded into the weights, for inference; False keeps its layers and their running
        statistics, so that training can go on. A converted network has none.

    Returns:
      The model, from images `[B, H, W, C]` of about [-1, 1] to V_T / T `[B, classes]`; its configuration; its
      `datasets.DatasetInfo`, whose `normalise` makes such images of pixels; and the checkpoint its weights are from.

    Raises:
      UserError: there is no run, or what is needed of it is damaged.
    """
    from tfspike.engine import folding

    config = config_lib.read_run(workdir)
    info = data_info(workdir)
    checkpoint = open_checkpoint(workdir, say, which)
    check_unedited(config, checkpoint)
    stands = standing(config, which, checkpoint)
    if not stands.finished:
        say(f"Warning: the run in {workdir} is {stands.unfinished}. These are the weights of its {stands.which} "
            f"checkpoint, step {checkpoint.step}. To go on training: {continuing_command(config)}")
    converted = _converted(workdir, timesteps)
    if converted is not None:
        return converted, config, info, checkpoint
    model = build_model(config, info, timesteps)
    variables.restore(model.variables, checkpoint.arrays("model"), f"The checkpoint {checkpoint.path}")
    for name in changed_code(config):
        say(f"Warning: the module of {name} was changed since the run in {workdir} was begun with it.")
    if config.is_spiking and config.kernel == "auto":
        model.configure_engine(kernel=kernel_of(checkpoint))
    return (folding.fold(model) if fold and model.is_spiking else model), config, info, checkpoint


def changed_code(config: Config) -> list[str]:
    """Names of the user's own (MODULE:NAME) whose modules are not as they were when the run of `config` was begun."""
    from tfspike.models import own

    before = run_metadata(str(config.workdir)).get("own_code", {})
    now = own.checksums((config.surrogate, config.neuron))
    return [name for name in now if before.get(name, now[name]) != now[name]]


def data_info(workdir: str) -> Any:
    """The `datasets.DatasetInfo` of a run; raises UserError where there is none."""
    from tfspike import datasets

    data = run_metadata(workdir).get("data")
    return datasets.DatasetInfo.from_dict((data.get("info") or {}) if isinstance(data, dict) else {})


def load_data(config: Config, info: Any, split: str, data_dir: str | None = None, timesteps: int | None = None) -> Any:
    """One split of a run's data: `datasets.Arrays`. Training data are all that the run was trained on.

    Args:
      config, info: of the run.
      split: "train" or "test".
      data_dir: where the data are; None: where the run found them.
      timesteps: another window than the run's.

    Raises:
      UserError: as for `datasets.load`.
    """
    from tfspike import datasets

    return datasets.load(config.dataset, split, data_dir or config.data_dir, timesteps or config.timesteps,
                         config.extra and split == "train", config.image_size, info, config.sensor_size,
                         config.window_ms)


def _converted(workdir: str, timesteps: int | None) -> Any:
    """The network that `tfspike.conversion` left in `workdir`, with a window of `timesteps`; None in other runs.

    Its shortcuts may carry factors, which no configuration describes: layers and weights come from the .keras file.
    """
    if "converted" not in run_metadata(workdir):
        return None
    import keras

    import tfspike.models  # noqa: F401 (registers the layers that the file names)

    path = os.path.join(workdir, CONVERTED)
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError) as error:
        raise UserError(f"The converted network {path} cannot be read ({first_line(error)}); convert the ANN "
                        "again.") from None
    return model if timesteps is None else model.with_timesteps(timesteps)
