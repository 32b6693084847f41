"""One routing step ``s_j = sum_i c_ij û_ij`` with a matrix for each input, and its gradients, in compiled loops.

A vector register holds one number of several examples, so that nothing is summed across a register but the gradient of the
weights. Examples are taken a register at a time: their images of one input are a scratch array of ``k * D`` vectors, which
the next input overwrites. Threads share the inputs between them and their sums are added in the order of the threads, so
that a result depends on their number but not on their timing.

"Vectors" below are flat arrays, a whole number of registers long; their index counts registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model
from torch import Tensor

__all__ = ["assign_backward", "assign_forward"]

REGISTER_BYTES = 64
# Rows of the weights that one loop takes: with as many accumulators, and the same number of inputs, all stay in registers.
ROWS = 8
# Registers of examples whose gradients wait for the sum over them in the gradient of the weights: they fit in the L2 cache.
GROUPS = 8


# --- vectors ---


class Vector(types.Type):
    """The type of a register of numbers."""

    def __init__(self, dtype: types.Type):
        self.dtype, self.lanes = dtype, REGISTER_BYTES * 8 // dtype.bitwidth
        super().__init__(f"Vector({dtype})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector):
        number = ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, kind, ir.VectorType(number, kind.lanes))


def vector_at(context: Any, builder: Any, signature: Any, array: Any, index: Any) -> Any:
    """Pointer to a register of a flat array."""
    data = builder.extract_value(array, context.data_model_manager[signature.args[0]].get_field_position("data"))
    kind = ir.VectorType(data.type.pointee, REGISTER_BYTES * 8 // signature.args[0].dtype.bitwidth)
    return builder.gep(builder.bitcast(data, kind.as_pointer()), [index])


@intrinsic
def load(typing, array, index):
    """Register ``index`` of an array."""

    def generate(context, builder, signature, arguments):
        return builder.load(vector_at(context, builder, signature, *arguments), align=REGISTER_BYTES)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing, array, index, vector):
    def generate(context, builder, signature, arguments):
        pointer = vector_at(context, builder, signature, *arguments[:2])
        builder.store(arguments[2], pointer, align=REGISTER_BYTES)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def spread(typing, array, index):
    """A register full of number ``index`` of an array."""

    def generate(context, builder, signature, arguments):
        data = builder.extract_value(
            arguments[0], context.data_model_manager[signature.args[0]].get_field_position("data")
        )
        number = builder.load(builder.gep(data, [arguments[1]]))
        kind = context.get_value_type(signature.return_type)
        empty, zero = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        first = builder.insert_element(empty, number, zero)
        return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))

    return Vector(array.dtype)(array, types.intp), generate


def arithmetic(instruction: Callable[..., Any]) -> Callable[..., Any]:
    """A function of registers, by a function of the instruction builder and registers."""

    @intrinsic
    def function(typing, *vectors):
        def generate(context, builder, signature, arguments):
            return instruction(builder, *arguments[0])

        return vectors[0][0](*vectors), generate

    return function


@intrinsic
def add_product(typing, total, x, y):
    """``total + x * y``."""

    def generate(context, builder, signature, arguments):
        total, x, y = arguments
        return builder.fadd(builder.fmul(x, y, flags=("contract",)), total, flags=("contract",))

    return total(total, x, y), generate


@intrinsic
def product(typing, x, y):
    def generate(context, builder, signature, arguments):
        return builder.fmul(*arguments, flags=("contract",))

    return x(x, y), generate


@intrinsic
def difference(typing, x, y):
    def generate(context, builder, signature, arguments):
        return builder.fsub(*arguments, flags=("contract",))

    return x(x, y), generate


@intrinsic
def quotient(typing, x, y):
    def generate(context, builder, signature, arguments):
        return builder.fdiv(*arguments)

    return x(x, y), generate


@intrinsic
def maximum(typing, x, y):
    """The larger numbers, or those of x where either is not a number."""

    def generate(context, builder, signature, arguments):
        x, y = arguments
        return builder.select(builder.fcmp_ordered("<", x, y), y, x)

    return x(x, y), generate


@intrinsic
def total(typing, x):
    """The sum of a register's numbers."""

    def generate(context, builder, signature, arguments):
        kind = arguments[0].type
        name = f"llvm.vector.reduce.fadd.v{kind.count}{'f32' if isinstance(kind.element, ir.FloatType) else 'f64'}"
        function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(kind.element, [kind.element, kind]))
        return builder.call(function, [ir.Constant(kind.element, -0.0), arguments[0]], fastmath=("reassoc",))

    return x.dtype(x), generate


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function in machine code, which is kept on disk where there is a directory for it."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}} | options
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    return compiled(function, forceinline=True)


# --- the parts of a step: f, k and D as elsewhere, `lanes` examples ---


@inlined
def read_inputs(inputs, start, i, x):
    """Input i of the examples from ``start``: ``(batch, n, f)`` to f vectors of a register for every group of examples."""
    batch, _, f = inputs.shape
    lanes = REGISTER_BYTES // inputs.itemsize
    rows = -(-f // ROWS) * ROWS
    for example in range(min(batch - start, GROUPS * lanes)):
        place = (example // lanes) * rows * lanes + example % lanes
        for p in range(f):
            x[place + p * lanes] = inputs[start + example, i, p]


@inlined
def read_weight(weight, i, w):
    """Matrix i: ``(n, f, k D)`` to ``f * k D`` numbers."""
    _, f, columns = weight.shape
    for p in range(f):
        for q in range(columns):
            w[p * columns + q] = weight[i, p, q]


@inlined
def read_mask(mask, start, i, valid):
    """Mask ``(batch, n)`` of input i: a register for every group of examples."""
    for example in range(min(mask.shape[0] - start, valid.size)):
        valid[example] = mask[start + example, i]


@inlined
def weighted(w, columns, q, x0, x1, x2, x3, x4, x5, x6, x7):
    """``x . w[:, q]``, of 8 rows of the weights."""
    even = product(x0, spread(w, q))
    odd = product(x1, spread(w, q + columns))
    even = add_product(even, x2, spread(w, q + 2 * columns))
    odd = add_product(odd, x3, spread(w, q + 3 * columns))
    even = add_product(even, x4, spread(w, q + 4 * columns))
    odd = add_product(odd, x5, spread(w, q + 5 * columns))
    even = add_product(even, x6, spread(w, q + 6 * columns))
    odd = add_product(odd, x7, spread(w, q + 7 * columns))
    return plus(even, odd)


@inlined
def exponentials(x, bits):
    """Exponentials of numbers up to 0, in place; ``bits``: room for as many 32 bit integers."""
    if x.itemsize == 8:
        for place in range(x.size):
            x[place] = math.exp(x[place])
    else:
        # exp(x) = 2^n exp(r) with |r| <= log(2) / 2, the polynomial of Cephes
        for place in range(x.size):
            number = np.float32(-87.0) if x[place] < np.float32(-87.0) else x[place]
            n = np.int32(number * np.float32(1.44269504) - np.float32(0.5))
            # log(2) in two parts, the first of few bits, so that n times it is exact
            r = number - np.float32(n) * np.float32(0.693359375) - np.float32(n) * np.float32(-2.12194440e-4)
            y = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
            y = y * r + np.float32(8.3334519073e-3)
            y = y * r + np.float32(4.1665795894e-2)
            y = y * r + np.float32(1.6666665459e-1)
            y = y * r + np.float32(5.0000001201e-1)
            x[place] = y * (r * r) + r + np.float32(1)
            bits[place] = (n + np.int32(127)) << np.int32(23)
        powers = bits.view(np.float32)
        for place in range(x.size):
            x[place] *= powers[place]
