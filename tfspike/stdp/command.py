"""What `python -m tfspike.stdp` does: weights that `train.py --init_from` begins with.

    OUT/checkpoints/     the weights of the whole network; "stdp" in meta.json says how they were made
"""

from __future__ import annotations

import dataclasses
import os

from tfspike import datasets
from tfspike.config.config import Config
from tfspike.datasets import sampling, streams
from tfspike.datasets.catalogue import facts
from tfspike.errors import UserError, explained_where_memory_is_full
from tfspike.models import own, variables
from tfspike.output import counted
from tfspike.runs import checkpoints, provenance, workdir
from tfspike.runs import loading as run_loading
from tfspike.stdp import stack
from tfspike.stdp.options import StdpOptions
from tfspike.stdp.rules import RULES


def run(config: Config, options: StdpOptions, training: dict[str, str], say: workdir.Say = print) -> str:
    """Has the convolutions of a network learn, and writes its weights.

    Args:
      config: of the network; its workdir is the folder to write.
      options: how it learns.
      training: flags of the train.py that goes on.
      say: takes lines for the user.

    Returns:
      The command that goes on, with `--init_from`.

    Raises:
      UserError: the folder holds a run or cannot be written, the network or its data cannot be used, or memory is full.
    """
    out = str(config.workdir)
    if os.path.exists(os.path.join(out, "config.json")):
        raise UserError(f"--workdir={out} holds a run; give another folder for the weights that a run begins with.")
    own.load(config.surrogate, config.neuron)
    data = datasets.load(config.dataset, "train", config.data_dir, config.timesteps, config.extra, config.image_size)
    train, _ = streams.split_indices(len(data), config.val_fraction, config.seed, data.name)
    info = datasets.describe(data, train, config.augment)
    model = run_loading.build_model(config, info)
    rule = RULES[options.rule](options.steps, config.leak, config.seed)
    shown = train
    if facts(data.name).by_class:
        shown = train[sampling.epoch_order(len(train), config.seed, 0)]
    with explained_where_memory_is_full("Give fewer --images, --steps or --timesteps."):
        found = stack.pretrain(model, info.normalise(data.images[shown[:options.images]]), rule, options.images, say)
    about = {"rule": options.rule, "images": options.images, "steps": options.steps, "commit": provenance.commit(),
             "command": provenance.without_paths(provenance.command())}
    checkpoints.save(os.path.join(out, workdir.CHECKPOINTS), 0,
                     {"model": variables.collect(model.variables), "optimizer": {}},
                     {"config": dataclasses.asdict(config), "stdp": about}, keep=1, best=True)
    go_on = provenance.to_copy("train", **training, init_from=out)
    say(f"First weights of {counted(len(found), 'convolution')} by STDP, and of the other layers as they begin, are in "
        f"{out}. To train from them: {go_on}")
    return go_on
