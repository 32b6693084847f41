"""python scripts/benchmark_capsule_routing.py --threads 1 --json benchmark.json

Hinton's dynamic routing, forward and backward, as public repositories write it and as hfblog does, side by side, with the
ratios. Setting: 1,152 inputs of 8 numbers with a matrix each, 10 capsules of 16, 3 iterations, a batch of 128; gradients of
inputs and weights. The peers are written out here in the forms that are in use:

    broadcast   images (batch, n, k, D, 1) by torch.matmul of (1, n, k, D, f) and (batch, n, 1, f, 1), broadcast products
    einsum      images (batch, n, k, D) by einsum, and the loop by einsum

Every contestant gets the same data; before anything is timed, results and gradients of all that compute the same function
are compared, and a difference ends the program. "Stopped" contestants keep the gradient out of the coupling, which is
another function. They take turns within each round, so that a drifting machine slows all of them; a ratio is the median
over rounds of the ratio to "broadcast" within a round. CPU time is that of all threads. Memory is measured in a process of
its own for each contestant: "tensors" is the most bytes that torch's allocator held above the start of a step, "RSS" by how
much resident memory rose over what it was before the step (on Linux). hfblog's loops work in memory of that allocator too.

    --compile   adds hfblog's matrix products under torch.compile (needs a C++ compiler)
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from statistics import median

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The profiler that counts the tensors' bytes talks of its starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from hfblog.models.capsule.routing import FullPredictions, route, squash  # noqa: E402

INPUTS, FEATURES, CAPSULES, SIZE, ITERATIONS = 1152, 8, 10, 16, 3
# A step: gradients of the inputs (batch, n, f) and of the weights, and the capsules (batch, k, D).
Step = Callable[[], tuple[Tensor, Tensor, Tensor]]


# --- the contestants: inputs (batch, n, f) and weight, the peers' (n, k, D, f), hfblog's (n, f, k, D), to (batch, k, D) ---


def broadcast(inputs: Tensor, weight: Tensor, stopped: bool) -> Tensor:
    images = torch.matmul(weight[None], inputs[:, :, None, :, None])
    shape = images.shape
    logits = images.new_zeros(*shape[:3], 1, 1)
    for iteration in range(ITERATIONS):
        last = iteration == ITERATIONS - 1
        seen = images.detach() if stopped and not last else images
        capsules = (logits.softmax(2) * seen).sum(1, keepdim=True)
        capsules = squash(capsules.squeeze(4)).unsqueeze(4)
        if not last:
            logits = logits + (seen * capsules).sum(3, keepdim=True)
    return capsules.reshape(shape[0], *shape[2:4])


def einsum(inputs: Tensor, weight: Tensor) -> Tensor:
    images = torch.einsum("nkdf,bnf->bnkd", weight, inputs)
    logits = images.new_zeros(images.shape[:3])
    for iteration in range(ITERATIONS):
        capsules = squash(torch.einsum("bnk,bnkd->bkd", logits.softmax(2), images))
        if iteration < ITERATIONS - 1:
            logits = logits + torch.einsum("bnkd,bkd->bnk", images, capsules)
    return capsules


def hfblog(inputs: Tensor, weight: Tensor, fused: bool = False, stopped: bool = False, half: bool = False) -> Tensor:
    predictions = FullPredictions(inputs, weight)
    if fused and not predictions.fused:
        sys.exit("error: the compiled loops need numba: pip install numba")
    predictions.fused = fused
    if half:
        # what it does by itself under autocast on other devices
        predictions.inputs, predictions.weight = predictions.inputs.bfloat16(), predictions.weight.bfloat16()
    return squash(route(predictions, ITERATIONS, "hinton", detach=stopped).sums.float())


# name: the function, its settings, and the contestant whose results it must agree with
CONTESTANTS = {
    "broadcast": (broadcast, {"stopped": False}, "broadcast"),
    "broadcast, stopped": (broadcast, {"stopped": True}, "broadcast, stopped"),
    "einsum": (einsum, {}, "broadcast"),
    "hfblog, matrix products": (hfblog, {}, "broadcast"),
    "hfblog, loops": (hfblog, {"fused": True}, "broadcast"),
    "hfblog, loops, stopped": (hfblog, {"fused": True, "stopped": True}, "broadcast, stopped"),
    "hfblog, matrix products, bf16": (hfblog, {"half": True}, "broadcast"),
    "hfblog, matrix products, compiled": (hfblog, {}, "broadcast"),
}


def step_of(name: str, batch: int) -> Step:
    """One forward and backward pass of a contestant, from the data that all of them share."""
    function, settings, _ = CONTESTANTS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, INPUTS, FEATURES, generator=generator)
    inputs = squash(inputs).requires_grad_()
    weight = 0.3 * torch.randn(INPUTS, FEATURES, CAPSULES, SIZE, generator=generator)
    grad = torch.randn(batch, CAPSULES, SIZE, generator=generator)
    own = function is hfblog
    weight = (weight if own else weight.permute(0, 2, 3, 1).contiguous()).requires_grad_()
    if name.endswith("compiled"):
        function = torch.compile(function)

    def step() -> tuple[Tensor, Tensor, Tensor]:
        capsules = function(inputs, weight, **settings)
        d_inputs, d_weight = torch.autograd.grad(capsules, (inputs, weight), grad)
        return d_inputs, d_weight if own else d_weight.permute(0, 3, 1, 2), capsules.detach()

    return step


def differences(names: list[str], batch: int) -> dict[str, float]:
    """Largest error of gradients and capsules, relative to the largest number; too large a one ends the program."""
    found, expected = {}, {}
    for name in names:
        reference = CONTESTANTS[name][2]
        results = step_of(name, batch)()
        expected.setdefault(name, results) if reference == name else None
        pairs = zip(results, expected[reference], strict=True)
        found[name] = max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)
        if found[name] > (0.1 if name.endswith("bf16") else 1e-4):
            sys.exit(f"error: {name} does not compute what {reference} does: they differ by {found[name]:.1e}")
    return found


# --- time and memory ---


def measure(steps: dict[str, Step], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of all contestants in turn, ``rounds`` times, after one more time to warm up."""
    timings: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                timings[name]["wall"].append(wall)
                timings[name]["cpu"].append(cpu)
    return timings


def resident(field: str) -> int:
    """Bytes of this process's VmRSS or VmHWM (its peak)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", file.read())[1])


def memory_of(name: str, batch: int, threads: int) -> dict[str, float]:
    """Megabytes, measured in this process, which must be a fresh one."""
    torch.set_num_threads(threads)
    # What is compiled, and what torch sets up once, is no contestant's memory.
    step_of(name, batch if name.endswith("compiled") else 1)()
    step = step_of(name, batch)
    gc.collect()
    result = {"tensors": math.nan, "rss": math.nan}
    if sys.platform == "linux":
        # what has been freed would hide what the step takes; getrusage's peak could not be reset
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        before = resident("VmRSS")
        step()
        result["rss"] = (resident("VmHWM") - before) / 1e6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return result | {"tensors": peak / 1e6}


def measure_memory(names: list[str], batch: int, threads: int) -> dict[str, dict[str, float]]:
    """`memory_of`, one process after the other, each forked from one that has only the imports."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["hfblog.models.capsule.routing"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(memory_of, (name, batch, threads)) for name in names}


def median_ratio(first: list[float], second: list[float]) -> float:
    return median(a / b for a, b in zip(first, second, strict=True))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's choice")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="the median over these is printed")
    parser.add_argument("--compile", action="store_true", help="also hfblog's matrix products under torch.compile")
    parser.add_argument("--json", metavar="FILE", help="also write everything, every round too, to this file")
    arguments = parser.parse_args()
    for name in ("threads", "batch", "rounds"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} {getattr(arguments, name)} must be positive")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    names = [name for name in CONTESTANTS if arguments.compile or not name.endswith("compiled")]
    errors = differences(names, arguments.batch)
    memory = measure_memory(names, arguments.batch, arguments.threads)
    timings = measure({name: step_of(name, arguments.batch) for name in names}, arguments.rounds)

    rows = []
    for name in names:
        first, own = timings["broadcast"], timings[name]
        rows.append(
            {
                "contestant": name,
                "seconds": median(own["wall"]),
                "cpu_seconds": median(own["cpu"]),
                "speed_ratio": median_ratio(first["wall"], own["wall"]),
                "cpu_ratio": median_ratio(first["cpu"], own["cpu"]),
                "megabytes": memory[name],
                "memory_ratio": memory["broadcast"]["tensors"] / memory[name]["tensors"],
                "differs": errors[name],
                "differs_from": CONTESTANTS[name][2],
                "rounds": own,
            }
        )
    print(f"torch {torch.__version__}, {arguments.threads} threads, batch {arguments.batch}, {arguments.rounds} rounds")
    print(f"{'':<36}{'s':>8}{'CPU s':>8}{'speed':>8}{'CPU':>7}{'tensors MB':>12}{'RSS MB':>8}{'memory':>8}{'differs':>9}")
    for row in rows:
        print(
            f"{row['contestant']:<36}{row['seconds']:>8.3f}{row['cpu_seconds']:>8.3f}{row['speed_ratio']:>7.1f}x"
            f"{row['cpu_ratio']:>6.1f}x{row['megabytes']['tensors']:>12.1f}{row['megabytes']['rss']:>8.1f}"
            f"{row['memory_ratio']:>7.1f}x{row['differs']:>9.0e}"
        )
    if arguments.json:
        content = {"torch": torch.__version__, "cores": os.cpu_count(), "settings": vars(arguments), "contestants": rows}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
