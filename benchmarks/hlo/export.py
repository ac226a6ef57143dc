"""Writes programs for `benchmarks.hlo.runner`: the HLO of whole training steps and of inference, and what they compute.

    python -m benchmarks.hlo.export                                    # all of them, some 5 MB, into an ignored folder
    python -m benchmarks.hlo.export --nets lenet --precisions float32  # some of them

What XLA is given is the HLO that TensorFlow makes of the step of `--jit=on` with the kernels and chunks of a GPU,
before any optimisation: the same for every device. Weights, counters and the learning rate are arguments of it, so no
file holds weights. Beside it stands what the same step, operation by operation, computes here from arguments that the
runner makes again from their seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2

import tfspike
from benchmarks import cases, network, steps
from benchmarks.hlo import plan, runner
from tfspike.neurons import noise

CHECKED_RATE = 100.0  # learning rate of the step that is compared: its updates are far above the rounding of weights


def export(case: cases.Case, gradient: str, precision: str, folder: Path) -> Path:
    """Writes NAME.hlo.gz and NAME.json of one program, and returns the latter's path.

    Args:
      case: what; "train" or "inference".
      gradient: "event" or "rate"; in inference they are the same.
      precision: "float32" or "bfloat16".
      folder: where.
    """
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        model = network.create(case.net, case.timesteps, gradient)
        write = _training if case.mode == "train" else _inference
        hlo, program = write(model, case)
    finally:
        keras.config.set_dtype_policy("float32")
    program |= {**dataclasses.asdict(case), "gradient": gradient, "precision": precision,
                "chunks": case.timesteps // model.engine.chunks(case.batch, case.mode == "train")[0],
                "versions": {"tfspike": tfspike.__version__, "tensorflow": tf.__version__}}
    path = plan.path(folder, case, gradient, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".hlo.gz").write_bytes(gzip.compress(portable(hlo), mtime=0))
    path.write_text(json.dumps(program, indent=1), encoding="utf-8")
    return path


def portable(hlo: bytes) -> bytes:
    """A module as JAX's plug-in for GPUs takes it: without copies, which StableHLO does not have.

    TensorFlow copies every updated variable at the end. A reshape to the same shape is the same value. Names and source
    lines of operations are left out.
    """
    module = hlo_pb2.HloModuleProto.FromString(hlo)
    module.ClearField("stack_frame_index")
    for computation in module.computations:
        for instruction in computation.instructions:
            instruction.ClearField("metadata")
            if instruction.opcode == "copy":
                instruction.opcode = "reshape"
    return module.SerializeToString(deterministic=True)


def _training(model: Any, case: cases.Case) -> tuple[bytes, dict[str, Any]]:
    """HLO and description of a training step."""
    batch = [{"name": "images", "kind": "pixels", **_form((case.batch, *cases.image_shape(case.net)), "float32")},
             {"name": "labels", "kind": "labels", "classes": cases.CLASSES, **_form((case.batch,), "int32")}]
    optimizer = steps.optimizer(model, CHECKED_RATE)
    compiled, plain = (steps.training_step(model, optimizer, case, jit) for jit in ("on", "off"))
    values = [runner.value(argument, i) for i, argument in enumerate(batch)]
    images, labels = map(tf.constant, values)
    variables = held_variables(compiled.graph(images, labels))
    hlo, text = (compiled.module(images, labels, stage) for stage in ("hlo_serialized", "hlo"))
    arguments = [*batch, {"name": "stop", "kind": "constant", "value": 0.0, **_form((), "float32")},
                 *map(_described, variables)]
    values = [runner.value(argument, i) for i, argument in enumerate(arguments)]
    updates, held = updates_of(text), len(arguments) - len(variables)
    for variable, value in zip(variables, values[held:]):
        variable.assign(value)
    found = plain(images, labels)
    results = {0: found.numpy(), **{result: variables[argument - held].numpy() for result, argument in updates}}
    program = {"mode": case.mode, "names": list(plain.numbers(found)), "arguments": arguments, "updates": updates}
    return hlo, program | {"expected": runner.numbers(program, values, results)}


def _inference(model: Any, case: cases.Case) -> tuple[bytes, dict[str, Any]]:
    """HLO and description of a window without a gradient: images to outputs."""
    def outputs(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    one_program = noise.as_one_program(outputs)

    images = {"name": "images", "kind": "pixels", **_form((case.batch, *cases.image_shape(case.net)), "float32")}
    compiled = tf.function(one_program, jit_compile=True, autograph=False)
    pixels = tf.constant(runner.value(images, 0))
    variables = held_variables(compiled.get_concrete_function(pixels))
    arguments = [images, *map(_described, variables)]
    hlo = compiled.experimental_get_compiler_ir(pixels)(stage="hlo_serialized")
    values = [runner.value(argument, i) for i, argument in enumerate(arguments)]
    for variable, value in zip(variables, values[1:]):
        variable.assign(value)
    program = {"mode": case.mode, "arguments": arguments, "updates": []}
    found = tf.function(outputs, autograph=False)(pixels).numpy()
    return hlo, program | {"expected": runner.numbers(program, values, {0: found})}


def _form(shape: Iterable[int], dtype: str) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype}


def held_variables(function: Any) -> list[tf.Variable]:
    """The variables of a concrete function, in the order of the arguments that XLA makes of them.

    Raises:
      ValueError: the function holds on to a tensor, which would be an argument without a name.
    """
    by_handle = {id(variable.handle): variable for variable in function.graph.variables}
    held = function.captured_inputs
    strange = [tensor for tensor in held if id(tensor) not in by_handle]
    if strange:
        raise ValueError(f"the step captures {len(strange)} tensors that are no variables: {strange[:2]}")
    return [by_handle[id(tensor)] for tensor in held]


def _name(variable: tf.Variable) -> str:
    return variable.name.partition(":")[0]


def _described(variable: tf.Variable) -> dict[str, Any]:
    """How the runner makes a variable: weights as wide as those that it starts with, anything else as it is."""
    start = variable.numpy()
    form = {"name": _name(variable), **_form(start.shape, start.dtype.name)}
    if np.ptp(start) > 0:
        return {**form, "kind": "weights", "std": float(np.std(start))}
    return {**form, "kind": "constant", "value": start.flat[0].item()}


def updates_of(text: str) -> list[tuple[int, int]]:
    """Pairs (result, argument) of an HLO module's text: this result is the new value of that argument."""
    head = text.partition("\n")[0]
    return [(int(result), int(argument)) for result, argument in re.findall(r"\{(\d+)\}: \((\d+), \{\}", head)]


def main(argv: list[str] | None = None) -> int:
    """Writes what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.add_arguments(parser)
    parser.add_argument("--again", action="store_true", help="also what is there already")
    given = parser.parse_args(argv)
    steps.as_on_a_gpu()
    for case, gradient, precision in plan.programs(given.nets.split(","), given.precisions.split(",")):
        if not given.again and plan.path(given.folder, case, gradient, precision).exists():
            continue
        begin = time.perf_counter()
        path = export(case, gradient, precision, given.folder)
        size = path.stat().st_size + path.with_suffix(".hlo.gz").stat().st_size
        print(f"{path.name}  {size / 1024:.0f} KiB  ({time.perf_counter() - begin:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
