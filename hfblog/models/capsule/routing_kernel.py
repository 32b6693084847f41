"""One routing step ``s_j = sum_i c_ij û_ij`` with a matrix for each input, and its gradients, in compiled loops.

A register holds one number of several examples, so that nothing is summed across a register but the gradient of the
weights. A group of examples, as many as a register holds, meets one input after the other; its images of an input are a
scratch array of ``k D`` registers, which the next input overwrites. Threads share the inputs between them, and their sums
are added in the order of the threads: a result depends on their number but not on their timing.

Registers lie in flat arrays of numbers; a place in such an array counts registers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:  # in a try block: transformers demands every other import of a repository's code, and these may be missing
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic, models, register_model
except ImportError as error:
    raise ImportError("the compiled loops need numba: pip install numba") from error

__all__ = ["assign_backward", "assign_forward"]

if numba.config.DISABLE_JIT:
    raise ImportError("these loops are for the compiler only")

REGISTER_BYTES = 64
# How many rows of the weights (inputs' features) or columns one loop takes: they and their sums fit in the registers.
ROWS = 8
# Groups of examples whose images wait for the sum over them in the gradient of the weights: they fit in the L2 cache.
GROUPS = 8
# Inputs whose features are read at once: a whole number of cache lines of each example.
BLOCK = 8


# --- registers ---


class Register(types.Type):
    """A register of numbers; tuples of ``ROWS`` of them are what unrolled loops work on."""

    def __init__(self, dtype: types.Type):
        self.dtype, self.lanes = dtype, REGISTER_BYTES * 8 // dtype.bitwidth
        super().__init__(f"Register({dtype})")


@register_model(Register)
class RegisterModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Register):
        number = ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, kind, ir.VectorType(number, kind.lanes))


def rows_of(kind: Register) -> types.UniTuple:
    return types.UniTuple(kind, ROWS)


def address(context: Any, builder: Any, kind: types.Array, array: Any, index: Any) -> Any:
    """Where number ``index`` of a flat array is."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def register_address(context: Any, builder: Any, kind: types.Array, array: Any, place: Any, row: int = 0) -> Any:
    """Where register ``place + row`` of a flat array is."""
    vector = ir.VectorType(context.get_value_type(kind.dtype), Register(kind.dtype).lanes)
    start = builder.bitcast(address(context, builder, kind, array, ir.Constant(place.type, 0)), vector.as_pointer())
    return builder.gep(start, [builder.add(place, ir.Constant(place.type, row))])


def spread(builder: Any, number: Any, lanes: int) -> Any:
    """A register full of one number."""
    vector = ir.VectorType(number.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))


def multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return builder.fadd(builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))


def entries(context: Any, builder: Any, kind: types.Array, array: Any, corner: Any, step: Any) -> list[Any]:
    """``ROWS`` numbers of a flat array, each spread over a register, ``step`` apart."""
    found = []
    for _ in range(ROWS):
        found.append(spread(builder, builder.load(address(context, builder, kind, array, corner)), Register(kind.dtype).lanes))
        corner = builder.add(corner, step)
    return found


@intrinsic
def load(typing, array, place):
    """The register at a place."""

    def generate(context, builder, signature, arguments):
        return builder.load(register_address(context, builder, array, *arguments), align=array.dtype.bitwidth // 8)

    return Register(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing, array, place, register):
    """Write a register to a place."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], register_address(context, builder, array, *arguments[:2]), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, register), generate


@intrinsic
def load_rows(typing, array, place):
    """The registers at ``ROWS`` places from this one on."""
    kind = rows_of(Register(array.dtype))

    def generate(context, builder, signature, arguments):
        places = [register_address(context, builder, array, *arguments, row) for row in range(ROWS)]
        return context.make_tuple(builder, kind, [builder.load(place, align=array.dtype.bitwidth // 8) for place in places])

    return kind(array, types.intp), generate


@intrinsic
def store_rows(typing, array, place, rows):
    """Write ``ROWS`` registers from this place on."""

    def generate(context, builder, signature, arguments):
        for row in range(ROWS):
            place = register_address(context, builder, array, *arguments[:2], row)
            builder.store(builder.extract_value(arguments[2], row), place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, rows), generate


@intrinsic
def combine_rows(typing, rows, matrix, corner, step):
    """Sum of rows, each times one of the matrix's numbers from ``corner`` on, ``step`` apart."""

    def generate(context, builder, signature, arguments):
        factors = entries(context, builder, matrix, *arguments[1:])
        halves = [builder.fmul(builder.extract_value(arguments[0], row), factors[row], flags=("contract",)) for row in (0, 1)]
        for row in range(2, ROWS):
            halves[row % 2] = multiply_add(builder, builder.extract_value(arguments[0], row), factors[row], halves[row % 2])
        return builder.fadd(*halves)

    return rows.dtype(rows, matrix, types.intp, types.intp), generate


@intrinsic
def add_to_rows(typing, rows, register, matrix, corner, step):
    """Add a register to rows, each time multiplied by one of the matrix's numbers from ``corner`` on, ``step`` apart."""

    def generate(context, builder, signature, arguments):
        rows, register, *matrix_and_where = arguments
        factors = entries(context, builder, matrix, *matrix_and_where)
        totals = [multiply_add(builder, register, factors[row], builder.extract_value(rows, row)) for row in range(ROWS)]
        return context.make_tuple(builder, signature.return_type, totals)

    return rows(rows, register, matrix, types.intp, types.intp), generate


@intrinsic
def add_products(typing, rows, first, register):
    """Add to rows the products of others with a register."""

    def generate(context, builder, signature, arguments):
        totals = [
            multiply_add(
                builder, builder.extract_value(arguments[1], row), arguments[2], builder.extract_value(arguments[0], row)
            )
            for row in range(ROWS)
        ]
        return context.make_tuple(builder, signature.return_type, totals)

    return rows(rows, first, register), generate


@intrinsic
def zero_rows(typing, array):
    """``ROWS`` registers of zeros of an array's kind."""
    kind = rows_of(Register(array.dtype))

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(array), generate


@intrinsic
def zeros(typing, array):
    """A register of zeros of an array's kind."""
    kind = Register(array.dtype)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(array), generate


@intrinsic
def store_totals(typing, array, index, rows):
    """Write the sums over the lanes of ``ROWS`` registers, from number ``index`` of an array on."""

    def generate(context, builder, signature, arguments):
        def fold(x, y, size):
            """Sums of neighbours, of x and then of y."""
            even, odd = (
                builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), size), list(range(start, 2 * size, 2))))
                for start in (0, 1)
            )
            return builder.fadd(even, odd)

        parts = [builder.extract_value(arguments[2], row) for row in range(ROWS)]
        while len(parts) > 1:
            parts = [fold(x, y, x.type.count) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        while parts[0].type.count > ROWS:
            parts = [fold(parts[0], parts[0], parts[0].type.count // 2)]
        start = address(context, builder, array, *arguments[:2])
        builder.store(parts[0], builder.bitcast(start, parts[0].type.as_pointer()), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, rows), generate


@intrinsic
def add_product(typing, x, y, z):
    """``x * y + z``."""

    def generate(context, builder, signature, arguments):
        return multiply_add(builder, *arguments)

    return x(x, y, z), generate


def binary(instruction: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """A function of two registers by an instruction of the builder."""

    @intrinsic
    def function(typing, x, y):
        def generate(context, builder, signature, arguments):
            return instruction(builder, *arguments)

        return x(x, y), generate

    return function


plus = binary(lambda builder, x, y: builder.fadd(x, y))
minus = binary(lambda builder, x, y: builder.fsub(x, y))
times = binary(lambda builder, x, y: builder.fmul(x, y))
over = binary(lambda builder, x, y: builder.fdiv(x, y))
larger = binary(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), y, x))


@intrinsic
def exponential(typing, x):
    """exp of numbers up to 0: ``2^n exp(r)``, ``|r| <= log(2) / 2``, by as much of the series as the precision asks for."""

    def generate(context, builder, signature, arguments):
        vector = arguments[0].type
        single = x.dtype == types.float32
        # log(2) in two parts, the first of so few bits that n times it is exact
        low, terms, high, rest, bits, bias = (
            (-87.0, 7, 0.693359375, -2.12194440054690583e-4, 23, 127)
            if single
            else (-708.0, 13, 6.93147180369123816490e-1, 1.90821492927058770002e-10, 52, 1023)
        )

        def constant(number):
            return ir.Constant(vector, [number] * vector.count)

        number = builder.select(builder.fcmp_ordered("<", arguments[0], constant(low)), constant(low), arguments[0])
        name = f"llvm.rint.v{vector.count}{'f32' if single else 'f64'}"
        rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector]), name)
        n = builder.call(rint, [builder.fmul(number, constant(1 / math.log(2)))])
        r = multiply_add(builder, n, constant(-rest), multiply_add(builder, n, constant(-high), number))
        series = constant(1 / math.factorial(terms))
        for term in range(terms - 1, -1, -1):
            series = multiply_add(builder, series, r, constant(1 / math.factorial(term)))
        integer = ir.VectorType(ir.IntType(x.dtype.bitwidth), vector.count)
        exponent = builder.add(builder.fptosi(n, integer), ir.Constant(integer, [bias] * vector.count))
        power = builder.bitcast(builder.shl(exponent, ir.Constant(integer, [bits] * vector.count)), vector)
        return builder.fmul(series, power)

    return x(x), generate


# --- loops: inputs (batch, n, f), weight (n, f, k D), mask (batch, n) or (0, 0); columns: k D, padded: f by whole ROWS ---


OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
inlined = numba.njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in machine code, which is kept on disk where there is a directory for it."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return numba.njit(**OPTIONS)(function)


@inlined
def read_inputs(inputs, start, i, end, x):
    """Inputs i to ``end`` of the examples from ``start`` on, to registers x ``(BLOCK, GROUPS, padded)``."""
    batch, _, f = inputs.shape
    lanes = REGISTER_BYTES // inputs.itemsize
    padded = -(-f // ROWS) * ROWS
    for example in range(min(batch - start, GROUPS * lanes)):
        for row in range(end - i):
            place = (row * GROUPS + example // lanes) * padded * lanes + example % lanes
            for p in range(f):
                x[place + p * lanes] = inputs[start + example, i + row, p]


@inlined
def write_inputs(x, start, i, end, inputs):
    """What `read_inputs` does, the other way round."""
    batch, _, f = inputs.shape
    lanes = REGISTER_BYTES // inputs.itemsize
    padded = -(-f // ROWS) * ROWS
    for example in range(min(batch - start, GROUPS * lanes)):
        for row in range(end - i):
            place = (row * GROUPS + example // lanes) * padded * lanes + example % lanes
            for p in range(f):
                inputs[start + example, i + row, p] = x[place + p * lanes]


@inlined
def read_weight(weight, mask, start, i, w, valid):
    """Matrix of an input, ``(padded, columns)`` numbers, and what the mask says of the examples from ``start`` on."""
    _, f, columns = weight.shape
    for p in range(f):
        for q in range(columns):
            w[p * columns + q] = weight[i, p, q]
    for example in range(min(mask.shape[0] - start, valid.size)):
        valid[example] = mask[start + example, i]


@inlined
def write_images(x, place, padded, w, columns, image, first):
    """Images ``(columns,)`` of a group, by its registers x ``(padded,)`` from ``place`` on."""
    for p in range(0, padded, ROWS):
        features = load_rows(x, place + p)
        for q in range(columns):
            part = combine_rows(features, w, p * columns + q, columns)
            store(image, first + q, part if p == 0 else plus(part, load(image, first + q)))


@inlined
def inner_products(image, first, query, place, k, d, out):
    """Products ``(k,)`` of a group's images and queries, both ``(k, D)``."""
    for j in range(k):
        even, odd = zeros(out), zeros(out)
        for q in range(j * d, j * d + d - 1, 2):
            even = add_product(load(image, first + q), load(query, place + q), even)
            odd = add_product(load(image, first + q + 1), load(query, place + q + 1), odd)
        if d % 2:
            last = j * d + d - 1
            even = add_product(load(image, first + last), load(query, place + last), even)
        store(out, j, plus(even, odd))


@inlined
def softmax(x, k):
    """Softmax ``(k,)`` of a group, in place."""
    top = load(x, 0)
    for j in range(1, k):
        top = larger(top, load(x, j))
    whole = zeros(x)
    for j in range(k):
        share = exponential(minus(load(x, j), top))
        whole = plus(whole, share)
        store(x, j, share)
    for j in range(k):
        store(x, j, over(load(x, j), whole))


@inlined
def pull_back(share, received, valid, image, first, query, grad, place, k, d, d_query):
    """Turn the images of a group into their gradients, and add to that of the query.

    Registers: share, the softmax, and received, the products of images and gradient, ``(k,)``; the others ``(k, D)``.
    """
    mean = zeros(share)
    for j in range(k):
        mean = add_product(load(share, j), load(received, j), mean)
    for j in range(k):
        coupling = times(load(share, j), valid)
        slope = times(coupling, minus(load(received, j), mean))
        for q in range(j * d, j * d + d):
            store(d_query, place + q, add_product(slope, load(image, first + q), load(d_query, place + q)))
            direct = times(coupling, load(grad, place + q))
            store(image, first + q, add_product(slope, load(query, place + q), direct))


@inlined
def pull_back_detached(share, valid, image, first, grad, place, k, d):
    """`pull_back` for a constant coupling."""
    for j in range(k):
        coupling = times(load(share, j), valid)
        for q in range(j * d, j * d + d):
            store(image, first + q, times(coupling, load(grad, place + q)))


@compiled
def forward_slice(inputs, weight, query, mask, k, begin, end, sums, scratch):
    """Add what inputs ``begin`` to ``end`` give to registers sums ``(groups, k, D)``; query likewise."""
    batch, _, f = inputs.shape
    columns = weight.shape[2]
    d = columns // k
    padded = -(-f // ROWS) * ROWS
    lanes = REGISTER_BYTES // inputs.itemsize
    x, w, valid, image, share = scratch
    for start in range(0, batch, GROUPS * lanes):
        for i in range(begin, end):
            row = (i - begin) % BLOCK
            if row == 0:
                read_inputs(inputs, start, i, min(i + BLOCK, end), x)
            read_weight(weight, mask, start, i, w, valid)
            for group in range(min(-(-(batch - start) // lanes), GROUPS)):
                place = (start // lanes + group) * columns
                write_images(x, (row * GROUPS + group) * padded, padded, w, columns, image, 0)
                inner_products(image, 0, query, place, k, d, share)
                softmax(share, k)
                for j in range(k):
                    coupling = times(load(share, j), load(valid, group))
                    for q in range(j * d, j * d + d):
                        store(sums, place + q, add_product(coupling, load(image, q), load(sums, place + q)))


@compiled
def backward_slice(inputs, weight, query, mask, grad, detach, k, begin, end, d_inputs, d_weight, d_query, scratch):
    """Gradients of inputs ``begin`` to ``end`` and of their matrices; add to registers d_query ``(groups, k, D)``.

    Args:
        query, grad: registers ``(groups, k, D)``.
        d_inputs: ``(batch, n, f)``, overwritten.
        d_weight: ``(n, f, k D)``, added to.
    """
    batch, _, f = inputs.shape
    columns = weight.shape[2]
    d = columns // k
    padded, stride = -(-f // ROWS) * ROWS, -(-columns // ROWS) * ROWS
    lanes = REGISTER_BYTES // inputs.itemsize
    x, w, valid, image, share, received, d_x, d_w = scratch
    for start in range(0, batch, GROUPS * lanes):
        groups = min(-(-(batch - start) // lanes), GROUPS)
        for i in range(begin, end):
            row = (i - begin) % BLOCK
            if row == 0:
                read_inputs(inputs, start, i, min(i + BLOCK, end), x)
            read_weight(weight, mask, start, i, w, valid)
            for group in range(groups):
                place, first = (start // lanes + group) * columns, group * stride
                features = (row * GROUPS + group) * padded
                write_images(x, features, padded, w, columns, image, first)
                inner_products(image, first, query, place, k, d, share)
                softmax(share, k)
                if detach:
                    pull_back_detached(share, load(valid, group), image, first, grad, place, k, d)
                else:
                    inner_products(image, first, grad, place, k, d, received)
                    pull_back(share, received, load(valid, group), image, first, query, grad, place, k, d, d_query)
                for p in range(0, padded, ROWS):
                    rows = zero_rows(x)
                    for q in range(columns):
                        rows = add_to_rows(rows, load(image, first + q), w, p * columns + q, columns)
                    store_rows(d_x, features + p, rows)
            for q in range(0, columns, ROWS):
                for p in range(f):
                    rows = zero_rows(x)
                    for group in range(groups):
                        feature = load(x, (row * GROUPS + group) * padded + p)
                        rows = add_products(rows, load_rows(image, group * stride + q), feature)
                    store_totals(d_w, p * stride + q, rows)
            for p in range(f):
                for q in range(columns):
                    d_weight[i, p, q] += d_w[p * stride + q]
            if row == BLOCK - 1 or i == end - 1:
                write_inputs(d_x, start, i - row, i + 1, d_inputs)


# --- tensors ---


@cache
def pool_of(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="routing")


if hasattr(os, "register_at_fork"):
    # the threads of a pool do not follow into a child process
    os.register_at_fork(after_in_child=pool_of.cache_clear)


def in_slices(run: Callable[[int, int, int], None], n: int, threads: int) -> None:
    """``run(thread, begin, end)`` for equal shares of n inputs."""
    bounds = [n * thread // threads for thread in range(threads + 1)]
    shares = [(thread, bounds[thread], bounds[thread + 1]) for thread in range(threads)]
    if threads == 1:
        run(*shares[0])
    else:
        list(pool_of(threads).map(run, *zip(*shares, strict=True)))


def lanes_of(tensor: Tensor) -> int:
    return REGISTER_BYTES // tensor.element_size()


def registers(count: int, like: Tensor) -> np.ndarray:
    """Zeros, at an address where no register straddles two cache lines, as torch's allocator promises."""
    return torch.zeros(count * lanes_of(like), dtype=like.dtype, device="cpu").numpy()


def to_registers(x: Tensor) -> np.ndarray:
    """``(batch, k, D)`` to registers ``(groups, k, D)``, with zeros in lanes that no example has."""
    lanes = lanes_of(x)
    groups = -(-len(x) // lanes)
    padded = x.new_zeros(groups * lanes, x.shape[1] * x.shape[2])
    padded[: len(x)] = x.flatten(1)
    return padded.unflatten(0, (groups, lanes)).transpose(1, 2).contiguous().flatten().numpy()


def from_registers(x: np.ndarray, like: Tensor) -> Tensor:
    """Sum over threads ``(threads, ...)`` of registers ``(groups, k, D)``, as a tensor ``(batch, k, D)``."""
    batch, k, d = like.shape
    lanes = lanes_of(like)
    groups = -(-batch // lanes)
    summed = torch.from_numpy(x.sum(0)).view(groups, k * d, lanes)
    return summed.transpose(1, 2).reshape(groups * lanes, k, d)[:batch]


def array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def arrays(inputs: Tensor, weight: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the loops read, the mask ``(0, 0)`` where there is none."""
    mask = inputs.new_zeros(0, 0) if mask is None else mask.to(inputs.dtype)
    return array(inputs), array(weight.flatten(2)), array(mask)


def scratch_of(inputs: Tensor, weight: Tensor, backward: bool) -> tuple[np.ndarray, ...]:
    """Registers to work in: features, a matrix, the mask, images, softmax; backward products and two gradients."""
    _, f, k, d = weight.shape
    padded, stride = -(-f // ROWS) * ROWS, -(-k * d // ROWS) * ROWS
    features, matrix = BLOCK * GROUPS * padded, -(-padded * stride // lanes_of(inputs))
    counts = [features, matrix, GROUPS, (GROUPS if backward else 1) * stride, k]
    scratch = tuple(registers(count, inputs) for count in counts + ([k, features, matrix] if backward else []))
    scratch[2][:] = 1
    return scratch


def assign_forward(inputs: Tensor, weight: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
    """Sums ``(batch, k, D)`` under the coupling that a query leads to.

    Args:
        inputs: ``(batch, n, f)``, of the dtype of weight and query.
        weight: ``(n, f, k, D)``.
        query: ``(batch, k, D)``.
        mask: ``(batch, n)``, factors of the coupling, or None.
    """
    n, _, k, _ = weight.shape
    threads = max(1, min(torch.get_num_threads(), n))
    read, queries = arrays(inputs, weight, mask), to_registers(query.detach())
    sums = registers(threads * len(queries) // lanes_of(query), query).reshape(threads, -1)

    def run(thread: int, begin: int, end: int) -> None:
        u, w, m = read
        forward_slice(u, w, queries, m, k, begin, end, sums[thread], scratch_of(inputs, weight, False))

    in_slices(run, n, threads)
    return from_registers(sums, query)


def assign_backward(
    inputs: Tensor, weight: Tensor, query: Tensor, mask: Tensor | None, grad: Tensor, detach: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `assign_forward` by inputs, weight and query; none by the query for a constant coupling (``detach``).

    Args:
        inputs, weight, query, mask: as there.
        grad: ``(batch, k, D)``, gradient of the sums.
        detach: whether the coupling is a constant.
    """
    n, _, k, d = weight.shape
    threads = max(1, min(torch.get_num_threads(), n))
    read, queries, grads = arrays(inputs, weight, mask), to_registers(query.detach()), to_registers(grad.to(query.dtype))
    d_inputs = torch.empty(inputs.shape, dtype=inputs.dtype)
    d_weight = torch.zeros(weight.shape, dtype=weight.dtype)
    d_query = registers(threads * len(queries) // lanes_of(query), query).reshape(threads, -1)
    written = d_inputs.numpy(), d_weight.flatten(2).numpy()

    def run(thread: int, begin: int, end: int) -> None:
        u, w, m = read
        scratch = scratch_of(inputs, weight, True)
        backward_slice(u, w, queries, m, grads, detach, k, begin, end, *written, d_query[thread], scratch)

    in_slices(run, n, threads)
    return d_inputs, d_weight, None if detach else from_registers(d_query, query)
