"""The operations of a `tf.function`, those in the bodies of its functions and loops included.

What nothing asks for is left out, as TensorFlow leaves it out before it runs a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

_LOOPS = ("While", "StatelessWhile")


class Node(NamedTuple):
    """One operation of a graph.

    Attributes:
      definition: its NodeDef.
      shapes: of its outputs.
      trips: how often it runs in one call of the whole function.
      looped: whether it is in a loop.
    """

    definition: Any
    shapes: list[tf.TensorShape]
    trips: int
    looped: bool

    @property
    def calls(self) -> list[str]:
        """The functions that it runs: the body of a loop, for one."""
        return [name for value in self.definition.attr.values()
                for name in ([value.func.name] if value.HasField("func") else [part.name for part in value.list.func])]


def walk(function: Any) -> Iterator[Node]:
    """All operations of a concrete function.

    Raises:
      ValueError: a loop does not say how often it runs (`maximum_iterations`).
    """
    graph = function.graph.as_graph_def(add_shapes=True)
    library = {part.signature.name: part for part in graph.library.function}
    roots = [tensor.op.name for tensor in tf.nest.flatten(function.graph.outputs)]
    roots += [operation.name for operation in function.graph.control_outputs]
    yield from _walk(graph.node, roots, library, 1, False)


def _walk(definitions: Iterable[Any], roots: Iterable[str], library: dict[str, Any], trips: int,
          looped: bool) -> Iterator[Node]:
    by_name = {node.name: node for node in definitions}
    for definition in _needed(by_name, roots):
        shapes = [tf.TensorShape(shape) for shape in definition.attr["_output_shapes"].list.shape]
        node = Node(definition, shapes, trips, looped)
        yield node
        loops = definition.op in _LOOPS
        for name in node.calls:
            body = library[name]
            asked = [_source(name) for name in (*body.ret.values(), *body.control_ret.values())]
            times = trips
            if loops:  # which asks once more than it goes round whether to go on
                times *= _iterations(definition, by_name) + (name == definition.attr["cond"].func.name)
            yield from _walk(body.node_def, asked, library, times, looped or loops)


def _needed(by_name: dict[str, Any], roots: Iterable[str]) -> list[Any]:
    """The nodes that the roots need, in the order of the graph."""
    needed, waiting = set(), [name for name in roots if name in by_name]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [source for source in map(_source, by_name[name].input) if source in by_name]
    return [node for name, node in by_name.items() if name in needed]


def _source(reference: str) -> str:
    """The node that an input, "^node" or "node:output:0", comes from."""
    return reference.removeprefix("^").partition(":")[0]


def _iterations(loop: Any, by_name: dict[str, Any]) -> int:
    """`tf.while_loop` puts its counter and the most iterations in front of what the loop carries."""
    most = by_name.get(_source(loop.input[1]))
    value = int(tf.make_ndarray(most.attr["value"].tensor)) if most is not None and most.op == "Const" else -1
    if value < 0:
        raise ValueError(f"the loop {loop.name} does not say how often it runs: give it maximum_iterations")
    return value
