"""Rows of floats, added and compared in vector registers: what the compiler does not find by itself.

Each intrinsic is a few lines of LLVM for vectors of 16 floats, which LLVM splits where a machine has narrower ones.
Written as loops over one flat array, the same takes four times as long: rows might overlap, and the compiler must
assume that they do. Rows need not be aligned.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from tfspike.engine.events.columns import LANES

_FLOAT, _BITS, _WORD = ir.FloatType(), ir.IntType(LANES), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)

intrinsic: Any = extending.intrinsic  # numba calls what it decorates with one argument more than the compiled code


class _Rows:
    """Loads and stores of vectors within the arrays that an intrinsic is given."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any):
        self.builder = builder
        self._types = [getattr(of, "dtype", of) for of in signature.args]
        self._data = [context.make_array(of)(context, builder, arg).data if isinstance(of, types.Array) else None
                      for of, arg in zip(signature.args, args)]

    def at(self, array: int, index: Any, vector: bool = True) -> Any:
        pointer = self.builder.gep(self._data[array], [index])
        return self.builder.bitcast(pointer, _VECTOR.as_pointer()) if vector else pointer

    def load(self, array: int, index: Any) -> Any:
        if self._types[array] == types.uint16:
            return self._widened(array, index)
        found = self.builder.load(self.at(array, index))
        found.align = 4
        return found

    def _widened(self, array: int, index: Any) -> Any:
        """Values of bfloat16, the upper halves of floats."""
        halves, whole = (ir.VectorType(ir.IntType(bits), LANES) for bits in (16, 32))
        found = self.builder.load(self.builder.bitcast(self.at(array, index, vector=False), halves.as_pointer()))
        found.align = 2
        upper = self.builder.shl(self.builder.zext(found, whole), ir.Constant(whole, [16] * LANES))
        return self.builder.bitcast(upper, _VECTOR)

    def store(self, value: Any, array: int, index: Any) -> None:
        self.builder.store(value, self.at(array, index)).align = 4

    def spread(self, value: Any) -> Any:
        """A vector of one value."""
        one = self.builder.insert_element(ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value,
                                          ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, one, mask)


def _adder(vectors: int, weighted: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, word = _Rows(context, builder, signature, args), args[1].type
        sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(vectors)]
        offsets = [ir.Constant(word, LANES * v) for v in range(vectors)]
        for total, offset in zip(sums, offsets):
            builder.store(rows.load(0, builder.add(args[1], offset)), total)
        with cgutils.for_range(builder, args[5]) as loop:
            row = builder.add(builder.sext(builder.load(rows.at(4, loop.index, vector=False)), word), args[3])
            factor = rows.spread(builder.load(rows.at(6, loop.index, vector=False))) if weighted else None
            for total, offset in zip(sums, offsets):
                value = rows.load(2, builder.add(row, offset))
                value = value if factor is None else builder.fmul(value, factor)
                builder.store(builder.fadd(builder.load(total), value), total)
        for total, offset in zip(sums, offsets):
            rows.store(builder.load(total), 0, builder.add(args[1], offset))
        return context.get_dummy_value()

    if weighted:
        @intrinsic
        def add(typingctx: Any, target: Any, at: Any, source: Any, column: Any, row: Any, n: Any, factor: Any) -> Any:
            return types.void(target, types.intp, source, types.intp, row, types.intp, factor), generate
    else:
        @intrinsic
        def add(typingctx: Any, target: Any, at: Any, source: Any, column: Any, row: Any, n: Any) -> Any:
            return types.void(target, types.intp, source, types.intp, row, types.intp), generate
    return add


# add_V(target, at, source, column, row, n): target[at:at + 16 V] += the sum over k < n of
# source[row[k] + column:][:16 V]; and times factor[k], where there is a factor.
add_1, add_2, add_4, add_8 = (_adder(vectors, False) for vectors in (1, 2, 4, 8))
add_weighted_1, add_weighted_2, add_weighted_4 = (_adder(vectors, True) for vectors in (1, 2, 4))


@intrinsic
def add_scaled(typingctx: Any, target: Any, at: Any, source: Any, begin: Any, n: Any, factor: Any) -> Any:
    """target[at + i] += factor source[begin + i] for i < n, a multiple of 16; the two are different arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, word = _Rows(context, builder, signature, args), args[1].type
        factor = rows.spread(args[5])
        with cgutils.for_range_slice(builder, ir.Constant(word, 0), args[4], ir.Constant(word, LANES), word) as (i, _):
            to = builder.add(args[1], i)
            value = builder.fmul(rows.load(2, builder.add(args[3], i)), factor)
            rows.store(builder.fadd(rows.load(0, to), value), 0, to)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp, types.float32), generate


@intrinsic
def place(typingctx: Any, row: Any, n: Any, entries: Any, begin: Any, end: Any, base: Any, factor: Any) -> Any:
    """row[n + k] = (base + entries[begin + k]) factor for k < end - begin, and for up to 15 more."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, word, integer = _Rows(context, builder, signature, args), args[1].type, ir.IntType(32)
        numbers = ir.VectorType(integer, LANES)
        base, factor = (rows.spread(builder.trunc(args[i], integer)) for i in (5, 6))
        step = ir.Constant(word, LANES)
        with cgutils.for_range_slice(builder, args[3], args[4], step, word) as (k, _):
            source = builder.bitcast(rows.at(2, k, vector=False), ir.VectorType(ir.IntType(16), LANES).as_pointer())
            found = builder.load(source)
            found.align = 2
            found = builder.mul(builder.add(builder.zext(found, numbers), base), factor)
            target = builder.bitcast(rows.at(0, builder.add(args[1], builder.sub(k, args[3])), vector=False),
                                     numbers.as_pointer())
            builder.store(found, target).align = 4
        return context.get_dummy_value()

    return types.void(row, types.intp, entries, types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def fire(typingctx: Any, membrane: Any, at: Any, threshold: Any, leak: Any) -> Any:
    """Fires, resets and leaks 16 neurons: bit i of the result says whether membrane[at + i] was above threshold."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, signature, args)
        u = rows.load(0, args[1])
        fired = builder.fcmp_ordered(">", u, rows.spread(args[2]))
        after = builder.select(fired, ir.Constant(_VECTOR, [0.0] * LANES), builder.fmul(u, rows.spread(args[3])))
        rows.store(after, 0, args[1])
        return builder.zext(builder.bitcast(fired, _BITS), _WORD)

    return types.int64(membrane, types.intp, types.float32, types.float32), generate


@intrinsic
def tally(typingctx: Any, array: Any, at: Any, fired: Any, value: Any) -> Any:
    """Adds value to array[at + i] where bit i of what `fire` gave is 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, signature, args)
        mask = builder.bitcast(builder.trunc(args[2], _BITS), ir.VectorType(ir.IntType(1), LANES))
        added = builder.select(mask, rows.spread(args[3]), ir.Constant(_VECTOR, [0.0] * LANES))
        rows.store(builder.fadd(rows.load(0, args[1]), added), 0, args[1])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64, types.float32), generate


@intrinsic
def lowest(typingctx: Any, bits: Any) -> Any:
    """The number of the lowest bit that is 1 in an integer other than 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate
