"""Would a graph run on a GPU: what TensorFlow's own registry of kernels says, which every build carries.

For each operation the registry lists kernels by device ("GPU", or "DEFAULT" for every device), the types that they are
for, and the arguments that they take from the host's memory or leave there.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels as kernel_registry  # private, as is the next: there is no public way
from tensorflow.python.framework import op_def_registry

from benchmarks import graphs

# Elements of what a loop may leave on the host: numbers, shapes and conditions, which TensorFlow reckons there while it
# launches kernels. Constants of int32 are among them.
_FEW = 8

# Operations that need no kernel on a GPU, and why.
WITHOUT_KERNEL = {"Placeholder": "an argument of the function, in the graph's own spelling"}


@functools.cache
def _kernels(operation: str) -> list[Any]:
    found = kernel_registry.get_registered_kernels_for_op(operation).kernel
    return sorted((kernel for kernel in found if kernel.device_type in ("GPU", "DEFAULT")),
                  key=lambda kernel: kernel.device_type != "GPU")


def kernel_for(definition: Any) -> Any | None:
    """The GPU kernel that TensorFlow would take for an operation of these types, or None."""
    for kernel in _kernels(definition.op):
        if all(_allows(constraint, definition.attr[constraint.name]) for constraint in kernel.constraint) \
                and kernel.label in ("", _label(definition)):
            return kernel
    return None


def _label(definition: Any) -> str:
    return definition.attr["_kernel"].s.decode()


def _allows(constraint: Any, value: Any) -> bool:
    allowed = set(constraint.allowed_values.list.type)
    return set(value.list.type or [value.type]) <= allowed


def complaints(function: Any) -> list[str]:
    """What would not run on a GPU, or would leave it within a loop, in a concrete function: one line for each."""
    found = {}
    for node in graphs.walk(function):
        why = _complaint(node)
        if why is not None:
            found.setdefault((node.definition.op, why), node.definition.name)
    return [f"{operation}: {why} (first: {name})" for (operation, why), name in found.items()]


def _complaint(node: graphs.Node) -> str | None:
    definition = node.definition
    if definition.op in WITHOUT_KERNEL:
        return None
    kernel = kernel_for(definition)
    types = {name: _names(value) for name, value in definition.attr.items() if _names(value)}
    if kernel is None:
        return f"no kernel for {types}"
    if node.looped and any(not _is_small(shape) for shape in _on_host(node, set(kernel.host_memory_arg))):
        return f"leaves {', '.join(map(str, node.shapes))} on the host, {types}"
    return None


def _on_host(node: graphs.Node, arguments: set[str]) -> list[tf.TensorShape]:
    """Shapes of the outputs that a kernel leaves in the host's memory; int32 crosses every function there."""
    shapes, found = iter(node.shapes), []
    for output in op_def_registry.get(node.definition.op).output_arg:
        attributes = node.definition.attr
        types = attributes[output.type_list_attr].list.type if output.type_list_attr else [
            output.type or attributes[output.type_attr].type] * (attributes[output.number_attr].i if output.number_attr else 1)
        for kind in types:
            shape = next(shapes)
            if output.name in arguments or node.calls and kind == tf.int32.as_datatype_enum:
                found.append(shape)
    return found


def _names(value: Any) -> list[str]:
    return [tf.as_dtype(one).name for one in (value.list.type or [value.type]) if one]


def _is_small(shape: tf.TensorShape) -> bool:
    count = shape.num_elements()
    return count is not None and count <= _FEW
