"""How many operations a training step launches: what a GPU spends its time on where each is small.

    python -m benchmarks.launches                            # the four nets, both gradients, as on a GPU
    python -m benchmarks.launches --nets vgg9 --compiled     # and the operations that XLA makes of the same step

Operation by operation, TensorFlow runs every node of the graph as often as its loops go round, and launches a kernel
for each that computes something on the device. Compiled, what is launched are the fusions, convolutions, products,
copies and calls of XLA's optimised module. It is that of the CPU, whose compiler fuses by rules of its own;
`benchmarks.hlo.kernels` counts that of a GPU. Nothing here is run, and no GPU is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from typing import Any

from benchmarks import cases

# Nodes that launch nothing: constants and arguments, names for a tensor in another shape, numbers on the host.
_NOTHING = frozenset({
    "Const", "Placeholder", "Identity", "IdentityN", "NoOp", "StopGradient", "Reshape", "Squeeze", "ExpandDims",
    "Shape", "Size", "Rank", "Range", "Bitcast", "Unpack", "PartitionedCall", "StatefulPartitionedCall", "While",
    "StatelessWhile", "If", "StatelessIf", "TensorListReserve", "ReadVariableOp", "BroadcastGradientArgs"})
_FEW = 8  # elements up to which integers are numbers, shapes and conditions, which TensorFlow reckons on the host
# Instructions of an optimised module that are kernels of their own (those within a fusion are not listed as such).
_LAUNCHED = frozenset({
    "fusion", "fusion-start", "convolution", "dot", "custom-call", "copy", "call", "reduce", "concatenate", "transpose",
    "pad", "slice", "convert", "dynamic-slice", "dynamic-update-slice", "reduce-window", "select-and-scatter",
    "scatter", "gather", "sort", "rng-bit-generator", "broadcast"})
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?\S+ = .*?\b([a-z][a-z-]*)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)(?: \(.*\))? .*\{$")


def launched(function: Any) -> int:
    """Kernels that a concrete function launches, operation by operation."""
    from benchmarks import graphs

    return sum(node.trips for node in graphs.walk(function) if not _is_nothing(node))


def _is_nothing(node: Any) -> bool:
    import tensorflow as tf

    if node.definition.op in _NOTHING:
        return True
    kind = node.definition.attr["T"].type or node.definition.attr["SrcT"].type
    of_host = kind == tf.int32.as_datatype_enum or node.definition.op.startswith("Logical")
    sizes = [shape.num_elements() for shape in node.shapes]
    return of_host and all(size is not None and size <= _FEW for size in sizes)


def fused(module: str, trips: int) -> int:
    """Kernels of an optimised HLO module (its text), those in loops as often as each goes round.

    Args:
      module: the text.
      trips: of a loop that does not say: those of the engine go round once for each chunk.
    """
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in module.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head.group(1)
            entry = name if line.startswith("ENTRY") else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    return _kernels(entry, bodies, trips)


def _kernels(name: str, bodies: dict[str, list[str]], trips: int) -> int:
    found = 0
    for line in bodies[name]:
        instruction = _INSTRUCTION.match(line)
        kind = instruction.group(1) if instruction else ""
        body = re.search(r"body=%?([\w.\-]+)", line)
        if kind == "while" and body is not None:
            said = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
            found += (int(said.group(1)) if said else trips) * _kernels(body.group(1), bodies, trips)
        else:
            found += kind in _LAUNCHED
    return found


def count(case: cases.Case, gradient: str, compiled: bool) -> dict[str, Any]:
    """What one step of a case launches, as on a GPU: `{"nodes", "launches", "trace_s"}`, and compiled
    `{"kernels", "compile_s"}`."""
    import tensorflow as tf

    from benchmarks import graphs, network, steps

    begin = time.perf_counter()
    model = network.create(case.net, case.timesteps, gradient)
    step = steps.training_step(model, steps.optimizer(model), case, "on" if compiled else "off")
    batch = tf.zeros((case.batch, *cases.image_shape(case.net))), tf.zeros(case.batch, tf.int32)
    function = step.graph(*batch)
    found = {"nodes": sum(node.trips for node in graphs.walk(function)), "launches": launched(function),
             "trace_s": round(time.perf_counter() - begin, 1)}
    if compiled:
        begin = time.perf_counter()
        found["kernels"] = fused(step.module(*batch), case.timesteps // model.engine.chunks(case.batch, True)[0])
        found["compile_s"] = round(time.perf_counter() - begin, 1)
    return found


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON object for every net and gradient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(case.net for case in cases.NETS), help="default: %(default)s")
    parser.add_argument("--gradients", default="rate,event", help="default: %(default)s")
    parser.add_argument("--compiled", action="store_true", help="compile as well: minutes")
    given = parser.parse_args(argv)
    from benchmarks import steps

    steps.as_on_a_gpu()
    for case in cases.NETS:
        for gradient in given.gradients.split(","):
            if case.net in given.nets.split(","):
                found = count(case, gradient, given.compiled)
                print(json.dumps({**dataclasses.asdict(case), "gradient": gradient, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
