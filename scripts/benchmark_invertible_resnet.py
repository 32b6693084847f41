"""Run hfblog's invertible ResNet and normflows' residual flow side by side, and print the ratios.

    pip install 'hfblog[bench]'
    python scripts/benchmark_invertible_resnet.py
    python scripts/benchmark_invertible_resnet.py --threads 1 --rounds 5 --output benchmark.json
    python scripts/benchmark_invertible_resnet.py --quick      # a smaller run, to see that it works

The contestants compute one function: the same widths, weights and Lipschitz bounds, with the same actnorm, LipSwish and
number of power iterations a step; how far their latents are apart is printed. They take turns within each round, so that a
drifting machine slows all of them; a ratio is the median over rounds of the ratio within a round. CPU time is that of all
threads. Peak memory is that of a process of its own for each contestant: "RSS" is by how much resident memory rises over
what it was before the model was built, "tensors" the most bytes that a step held at once of those that it allocated itself.

What stays different: hfblog draws a number of series terms for every example and normflows one for the whole batch of a
block; hfblog's probes are Rademacher and normflows' normal; normflows' LipSwish has a trained slope; every 16th step of
hfblog estimates twice, to measure the variance. normflows leaves the power iterations to the training loop
(`update_lipschitz`), and its inverse has no tolerance that a caller could set.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import json
import logging
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The profiler that counts the tensors' bytes talks of its starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import hfblog  # noqa: E402
from hfblog import InvertibleResNetConfig, InvertibleResNetModel  # noqa: E402
from hfblog.models.flow.modeling_invertible_resnet import ActNorm  # noqa: E402

try:
    import normflows
except ImportError as error:
    sys.exit(f"error: {error}; the benchmark needs its peer: pip install 'hfblog[bench]'")

# So small that all contestants keep one function, however many steps each of them makes.
LEARNING_RATE = 1e-6
# Enough for the plain iteration at c = 0.98, so that what is compared is its length and not where it is cut off.
MOST_EVALUATIONS = 5000


@dataclass(frozen=True)
class Network:
    """The sizes that all contestants share. ``actnorm`` and ``preactivation`` hold for both libraries alike."""

    event_size: int
    blocks: int
    hidden_size: int
    hidden_layers: int = 2
    lipschitz: float = 0.9
    power_iterations: int = 2
    actnorm: bool = True
    preactivation: bool = True

    @property
    def layer_sizes(self) -> list[int]:
        return [self.event_size, *[self.hidden_size] * self.hidden_layers, self.event_size]


@dataclass(frozen=True)
class Law:
    """How many terms of the series are taken: ``exact_terms`` plus a geometric number with this mean, 1 / p."""

    name: str
    stop_probability: float
    exact_terms: int

    @property
    def mean_terms(self) -> float:
        return self.exact_terms + 1 / self.stop_probability


@dataclass(frozen=True)
class Contestant:
    """One way to train one network; small enough to be sent to another process."""

    library: str
    method: str
    law: Law | None = None

    @property
    def label(self) -> str:
        return f"{self.library} {self.method}"

    @property
    def key(self) -> str:
        return f"{self.label} {self.law.name}" if self.law else self.label


def laws(lipschitz: float) -> tuple[Law, Law]:
    """Each library's default: hfblog's keeps the variance finite for any g with that bound, normflows' is shorter."""
    return Law("hfblog's law", (1 - lipschitz**2) / 2, 4), Law("normflows' law", 0.5, 2)


def contestants_for(network: Network, chosen: tuple[Law, ...]) -> list[Contestant]:
    found = []
    for law in chosen:
        found += [
            Contestant("hfblog", "naive", law),
            Contestant("hfblog", "Neumann", law),
            Contestant("normflows", "reduce_memory=False", law),
            Contestant("normflows", "reduce_memory=True", law),
        ]
    found.append(Contestant("hfblog", "exact"))
    if network.event_size == 2:
        # Its exact determinant is written out for two dimensions; there is none for more.
        found.append(Contestant("normflows", "brute_force=True"))
    return found


# --- the models ---


def build_hfblog(network: Network, contestant: Contestant | None = None) -> InvertibleResNetModel:
    settings: dict[str, Any] = {}
    if contestant is not None:
        settings["log_det_estimator"] = "exact" if contestant.method == "exact" else "roulette"
        settings["neumann_gradient"] = contestant.method == "Neumann"
        if contestant.law is not None:
            settings["roulette_stop_probability"] = contestant.law.stop_probability
            settings["num_exact_terms"] = contestant.law.exact_terms
    config = InvertibleResNetConfig(
        event_shape=[network.event_size],
        num_levels=None,
        dequantization="none",
        num_blocks=[network.blocks],
        hidden_size=network.hidden_size,
        num_hidden_layers=network.hidden_layers,
        lipschitz_coeff=network.lipschitz,
        num_power_iterations=network.power_iterations,
        use_actnorm=network.actnorm,
        preactivation=network.preactivation,
        **settings,
    )
    return InvertibleResNetModel(config)


@torch.no_grad()
def normflows_copy(
    own: InvertibleResNetModel, network: Network, contestant: Contestant | None = None
) -> normflows.NormalizingFlow:
    """normflows' flow that computes the same function, in the dtype of ``own``."""
    settings: dict[str, Any] = {}
    if contestant is not None:
        settings["reduce_memory"] = contestant.method == "reduce_memory=True"
        settings["brute_force"] = contestant.method == "brute_force=True"
        if contestant.law is not None:
            settings["geom_p"] = contestant.law.stop_probability
            settings["n_exact_terms"] = contestant.law.exact_terms
    flows: list[nn.Module] = []
    for step in own.steps:
        if isinstance(step, ActNorm):
            # It sets itself from the first batch; here it is set already. It is the inverse map of hfblog's.
            flow = normflows.flows.ActNorm(network.event_size).to(own.dtype)
            flow.s.copy_(-step.log_scale)
            flow.t.copy_(-step.shift)
            flow.data_dep_init_done.fill_(1)
        else:
            net = normflows.nets.LipschitzMLP(
                network.layer_sizes,
                lipschitz_const=network.lipschitz ** (1 / len(step.layers)),
                max_lipschitz_iter=network.power_iterations,
            ).to(own.dtype)
            for place, layer in enumerate(step.layers):
                swish, linear = net.net[2 * place], net.net[2 * place + 1]
                linear.weight.copy_(layer.weight)
                linear.bias.copy_(layer.bias)
                # softplus(beta) = 1: hfblog's LipSwish
                swish.beta.fill_(math.log(math.e - 1))
            if not step.starts_with_activation:
                net.net = net.net[1:]
            flow = normflows.flows.Residual(net, **settings)
        flows.append(flow)
    base = normflows.distributions.base.DiagGaussian(network.event_size, trainable=False)
    # Listed from latents to data, the library's forward direction.
    model = normflows.NormalizingFlow(base, flows[::-1]).to(own.dtype)
    normflows.utils.update_lipschitz(model, 500)
    return model


def data_for(network: Network, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, network.event_size, generator=generator)


def training_step(network: Network, contestant: Contestant, x: Tensor) -> tuple[Callable[[], None], nn.Module]:
    """A function that makes one step of training (power iterations too), and the model it trains."""
    torch.manual_seed(0)
    own = build_hfblog(network, contestant)
    own.initialize(x)
    if contestant.library == "hfblog":
        model = own.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

        def step() -> None:
            optimizer.zero_grad()
            model(x).loss.backward()
            optimizer.step()

    else:
        model = normflows_copy(own.eval(), network, contestant).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

        def step() -> None:
            optimizer.zero_grad()
            model.forward_kld(x).backward()
            optimizer.step()
            normflows.utils.update_lipschitz(model, network.power_iterations)

    return step, model


def quiet() -> None:
    """hfblog warns of a law without bounded variance and of inverses that miss a tolerance; the tables show both."""
    logging.getLogger("hfblog").setLevel(logging.ERROR)


# --- taking turns ---


@dataclass
class Timing:
    """Milliseconds of one call, in each round."""

    wall: list[float]
    cpu: list[float]


def measure(tasks: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, Timing]:
    """Time all tasks in turn, ``rounds`` times, each for about ``seconds``. Every task has run before."""
    repeats, timings = {}, {}
    for key, task in tasks.items():
        start = time.perf_counter()
        task()
        repeats[key] = math.ceil(seconds / (time.perf_counter() - start))
        timings[key] = Timing([], [])
    # Garbage is collected between the contestants and not in the middle of one.
    gc.disable()
    for _ in range(rounds):
        for key, task in tasks.items():
            gc.collect()
            if repeats[key] > 1:
                task()  # the others' weights are in the caches now
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[key]):
                task()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            timings[key].wall.append(1000 * wall / repeats[key])
            timings[key].cpu.append(1000 * cpu / repeats[key])
    gc.enable()
    return timings


def median_ratio(first: list[float], second: list[float]) -> float:
    return median(a / b for a, b in zip(first, second, strict=True))


# --- memory ---


def resident(field: str) -> int:
    """Bytes of this process's VmRSS or VmHWM (its peak)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", file.read())[1])


def peak_of_tensors(step: Callable[[], None]) -> int:
    """The most bytes that torch's allocator held above the start of one step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def memory_of(network: Network, contestant: Contestant, batch: int, threads: int, steps: int) -> dict[str, float]:
    """Megabytes, measured in this process, which must be a fresh one.

    The kernel's own peak is read, reset after the imports: getrusage's would start at that of the parent process.
    """
    torch.set_num_threads(threads)
    quiet()
    x = data_for(network, batch)
    # Code that is read in and what torch sets up once is no contestant's memory.
    tiny = replace(network, blocks=1, hidden_size=2)
    step, _ = training_step(tiny, contestant, x[:4])
    step()
    del step
    gc.collect()
    if sys.platform == "linux":
        # What imports have freed would hide what the model takes.
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        before = resident("VmRSS")
    step, _ = training_step(network, contestant, x)
    for _ in range(steps):
        step()
    result = {"rss": math.nan}
    if sys.platform == "linux":
        result["rss"] = (resident("VmHWM") - before) / 1e6
    result["tensors"] = max(peak_of_tensors(step) for _ in range(min(steps, 3))) / 1e6
    return result


def measure_memory(
    network: Network, contestants: list[Contestant], batch: int, threads: int, steps: int
) -> dict[str, dict[str, float]]:
    """`memory_of` for each contestant, one process after the other, each forked from one that has only the imports."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["hfblog.models.flow.modeling_invertible_resnet", "normflows"])
    results = {}
    with context.Pool(1, maxtasksperchild=1) as pool:
        for contestant in contestants:
            results[contestant.key] = pool.apply(memory_of, (network, contestant, batch, threads, steps))
    return results


# --- what a training step computes ---


@torch.no_grad()
def terms_of_a_step(network: Network, law: Law, library: str, x: Tensor, draws: int) -> tuple[float, float]:
    """Mean number of series terms of a block and example, and of the longest chain of a block's batch."""
    torch.manual_seed(0)
    np.random.seed(0)  # normflows draws its number of terms there
    model = build_hfblog(network, Contestant("hfblog", "Neumann", law))
    model.initialize(x)
    model.eval()
    if library == "normflows":
        peer = normflows_copy(model, network, Contestant("normflows", "reduce_memory=False", law)).train()
        terms = []
        for _ in range(draws):
            peer.inverse(x)
            terms += [flow.iresblock.last_n_samples.item() for flow in peer.flows if hasattr(flow, "iresblock")]
        mean = law.exact_terms + sum(terms) / len(terms)
        return mean, mean
    products: list[int] = []
    for block in model.blocks:
        plain = block.vjp

        def counted(v: Tensor, *arguments: Any, plain: Callable[..., Tensor] = plain) -> Tensor:
            products.append(v.shape[1])
            return plain(v, *arguments)

        block.vjp = counted
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        # in evaluation and without gradient: each product is a term
        model.log_det(x, method="roulette", generator=generator)
    blocks = draws * len(model.blocks)
    return sum(products) / len(x) / blocks, len(products) / blocks


@torch.no_grad()
def log_det_of_training(
    own: InvertibleResNetModel, network: Network, contestant: Contestant, x: Tensor, draws: int
) -> dict[str, float]:
    """The log-determinant that training steps state for a batch: its mean error and its spread over draws, in nats.

    ``own`` is configured as the contestant asks.
    """
    torch.manual_seed(0)
    np.random.seed(0)  # normflows draws its number of terms there
    exact = own.eval().log_det(x, method="exact").mean().item()
    values = []
    if contestant.library == "hfblog":
        own.train()
        for _ in range(draws):
            # without gradient, the power iterations stand still
            values.append(own.encode(x)[1].mean().item())
    else:
        model = normflows_copy(own, network, contestant).train()
        for _ in range(draws):
            # its Neumann path differentiates within
            with torch.enable_grad():
                values.append(model.inverse_and_log_det(x)[1].mean().item())
    errors = torch.tensor(values, dtype=torch.float64) - exact
    spread = errors.std().item()
    return {"exact": exact, "error": errors.mean().item(), "standard_error": spread / math.sqrt(draws), "spread": spread}


@torch.no_grad()
def inverse_error_after_training(contestant: Contestant, model: nn.Module, x: Tensor) -> float:
    """Largest |inverse(f(x)) - x| with what each library does by default."""
    model.eval()
    if contestant.library == "hfblog":
        return (model.decode(model.transform(x)) - x).abs().max().item()
    normflows.utils.update_lipschitz(model, 500)
    return (model.forward(model.inverse(x)) - x).abs().max().item()


def compare_training(network: Network, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    own_law, peer_law = laws(network.lipschitz)
    chosen = (peer_law,) if arguments.quick else (own_law, peer_law)
    contestants = contestants_for(network, chosen)
    sizes = "-".join(map(str, network.layer_sizes))
    title = f"{network.blocks} blocks of {sizes}, batch {batch}, c = {network.lipschitz:g}, float32"
    print(f"\nTraining step: {title}")

    def say(what: str) -> None:
        print(f"{what}, {title} ...", file=sys.stderr, flush=True)

    say("measuring memory")
    memory = measure_memory(network, contestants, batch, arguments.threads, 1 if arguments.quick else 5)
    x = data_for(network, batch)
    with torch.no_grad():
        torch.manual_seed(0)
        own = build_hfblog(network)
        own.initialize(x)
        gap = (normflows_copy(own.eval(), network).inverse(x) - own.transform(x)).abs().max().item()
    print(f"  one function: the libraries' latents differ by at most {gap:.1e}")

    say("timing")
    steps = {contestant: training_step(network, contestant, x) for contestant in contestants}
    tasks = {contestant.key: step for contestant, (step, _) in steps.items()}
    for task in tasks.values():
        task()
    timings = measure(tasks, arguments.rounds, arguments.seconds)

    say("counting terms")
    terms = {
        (library, law): terms_of_a_step(network, law, library, x, arguments.draws)
        for library in ("hfblog", "normflows")
        for law in chosen
    }
    rows = {}
    for contestant, (_, model) in steps.items():
        law, timing = contestant.law, timings[contestant.key]
        mean, longest = terms[contestant.library, law] if law else (None, None)
        rows[contestant.key] = {
            "contestant": contestant.label,
            "law": asdict(law) if law else None,
            "ms": median(timing.wall),
            "cpu_ms": median(timing.cpu),
            "peak_mb": memory[contestant.key],
            "mean_terms": mean,
            "longest_chain": longest,
            "inverse_error": inverse_error_after_training(contestant, model, x),
            "rounds": asdict(timing),
        }

    print(f"  {'':<34}{'ms':>8}{'CPU ms':>9}{'peak MB: RSS':>14}{'tensors':>9}{'terms':>8}{'longest':>9}")
    for law in (*chosen, None):
        if law is None:
            print("  exact log-determinant")
        else:
            print(
                f"  {law.name}: {law.exact_terms} terms and a geometric number more, p = {law.stop_probability:.3g}; "
                f"{law.mean_terms:.1f} expected"
            )
        for contestant in contestants:
            if contestant.law != law:
                continue
            row = rows[contestant.key]
            terms = f"{row['mean_terms']:>8.1f}{row['longest_chain']:>9.1f}" if law else f"{'-':>8}{'-':>9}"
            print(
                f"    {contestant.label:<32}{row['ms']:>8.1f}{row['cpu_ms']:>9.1f}{row['peak_mb']['rss']:>14.1f}"
                f"{row['peak_mb']['tensors']:>9.1f}{terms}"
            )

    ratios = []
    print(f"  normflows/hfblog {'':<43}{'time':>8}{'CPU time':>10}{'RSS':>8}{'tensors':>9}")
    pairs = []
    for law in chosen:
        pairs.append((law.name, Contestant("normflows", "reduce_memory=False", law), Contestant("hfblog", "naive", law)))
        pairs.append((law.name, Contestant("normflows", "reduce_memory=True", law), Contestant("hfblog", "Neumann", law)))
    # What a user gets who sets nothing: in few dimensions hfblog then takes the exact determinant.
    default = Contestant("hfblog", "exact") if network.event_size <= 16 else Contestant("hfblog", "Neumann", own_law)
    pairs.append(("each by default", Contestant("normflows", "reduce_memory=True", peer_law), default))
    if network.event_size == 2:
        pairs.append(("exact", Contestant("normflows", "brute_force=True"), Contestant("hfblog", "exact")))
    for name, peer, own_contestant in pairs:
        if own_contestant.key not in timings:
            continue
        a, b = timings[peer.key], timings[own_contestant.key]
        ratio = {
            "setting": name,
            "normflows": peer.label,
            "hfblog": own_contestant.label,
            "time": median_ratio(a.wall, b.wall),
            "cpu_time": median_ratio(a.cpu, b.cpu),
        }
        for kind in ("rss", "tensors"):
            ratio[kind] = memory[peer.key][kind] / max(memory[own_contestant.key][kind], 1e-3)
        ratios.append(ratio)
        label = f"{name}: {peer.method} / {own_contestant.method}"
        print(f"    {label:<56}{ratio['time']:>8.2f}{ratio['cpu_time']:>10.2f}{ratio['rss']:>8.2f}{ratio['tensors']:>9.2f}")
    return {
        "network": asdict(network),
        "batch_size": batch,
        "latents_differ": gap,
        "contestants": list(rows.values()),
        "ratios": ratios,
    }


# --- inverse ---


def random_orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0]


@torch.no_grad()
def saturated(network: Network, shape: str, x: Tensor, contestant: Contestant | None = None) -> InvertibleResNetModel:
    """A model in evaluation, in x's dtype, whose weights all exceed the bound, so that each of them is scaled down to it."""
    torch.manual_seed(0)
    model = build_hfblog(network, contestant)
    for block in model.blocks:
        for place, layer in enumerate(block.layers):
            if shape == "random":
                nn.init.orthogonal_(layer.weight, gain=5.0)
                continue
            eye = 5 * torch.eye(*layer.weight.shape)
            if shape == "spectrum":
                basis = random_orthogonal(network.event_size)
                eye = 5 * basis @ torch.diag(torch.linspace(0, 1, network.event_size)) @ basis.T
            layer.weight.copy_(-eye if place == len(block.layers) - 1 else eye)
            # LipSwish is steepest at 2.4, where it is 2.0; the next layer's input is brought back there.
            scale = network.lipschitz ** (1 / len(block.layers))
            if network.hidden_layers:
                layer.bias.fill_((2.4, 2.4 - 2.0 * scale, 0.0)[place])
    model.finalize()  # the weights changed behind its back
    if network.actnorm:
        model.initialize(x.float())
    model = model.to(x.dtype).eval()
    model.finalize()  # in the new precision
    return model


@torch.no_grad()
def lipschitz_at(model: InvertibleResNetModel, x: Tensor) -> float:
    """Largest singular value of any block's Jacobian of g at a few examples: what the bound c stands against."""
    largest, hidden = 0.0, x[:8]
    for step in model.steps:
        if isinstance(step, ActNorm):
            hidden = step(hidden)[0]
            continue
        weights, _ = step.scaled_weights(0, False)
        value, slopes = step(hidden, weights)
        basis = torch.eye(x.shape[1], dtype=x.dtype)[:, None].expand(-1, len(hidden), -1)
        jacobian = step.vjp(basis, weights, slopes).transpose(0, 1)
        largest = max(largest, torch.linalg.matrix_norm(jacobian, 2).max().item())
        hidden = hidden + value
    return largest


class FixedPoint:
    """normflows' inverse without the log-determinant that its `forward` adds, and its number of evaluations of g.

    ``tolerance`` None leaves its own stop: ``(step of the iteration)^2 < 1e-5 (1 + |y|)`` everywhere, so steps below about
    3e-3. Else the stop is set so that the error is at most ``tolerance``; that argument is out of reach of its interface.
    """

    def __init__(self, model: normflows.NormalizingFlow, lipschitz: float, tolerance: float | None):
        self.model = model
        self.settings = {}
        if tolerance is not None:
            self.settings = {"atol": (tolerance * (1 - lipschitz) / lipschitz) ** 2, "rtol": 0.0}

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        for flow in self.model.flows:
            z = flow.iresblock._inverse_fixed_point(z, **self.settings) if hasattr(flow, "iresblock") else flow(z)[0]
        return z

    def count(self, z: Tensor) -> dict[str, float]:
        """Evaluations of g per block; the same for every example of a batch, which stops as one."""
        calls = []
        handles = []
        for place, flow in enumerate(flow for flow in self.model.flows if hasattr(flow, "iresblock")):
            calls.append(0)

            def called(*_: Any, place: int = place) -> None:
                calls[place] += 1

            handles.append(flow.iresblock.nnet.register_forward_hook(called))
        self(z)
        for handle in handles:
            handle.remove()
        return {"mean": sum(calls) / len(calls), "most": max(calls)}


def error_of(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Root mean square of the worst example, the norm in which hfblog's tolerance is stated, and the largest entry."""
    error = (x - truth).double()
    return {"rms": error.square().mean(1).sqrt().max().item(), "max": error.abs().max().item()}


def compare_inverse(
    name: str, network: Network, shape: str, batch: int, tolerances: list[float], arguments: argparse.Namespace
) -> dict[str, Any]:
    x = data_for(network, batch, seed=1).double()
    model = saturated(network, shape, x)
    with torch.no_grad():
        latents = model.transform(x)
    steepness = lipschitz_at(model, x)
    peer = normflows_copy(model, network).eval()
    with torch.no_grad():
        # Its interface computes a log-determinant with every pass, so the blocks are called by hand. In float64 its weights
        # are divided by a factor that it keeps in float32: it inverts its own latents, or that would count as its error.
        latents_of_peer = x
        for flow in peer.flows[::-1]:
            block = getattr(flow, "iresblock", None)
            latents_of_peer = flow.inverse(latents_of_peer)[0] if block is None else block(latents_of_peer)
    gap = (latents_of_peer - latents).abs().max().item()
    print(
        f"\n  {name}; c = {network.lipschitz:g}, largest ||J|| found {steepness:.3f}; "
        f"the libraries' latents differ by at most {gap:.0e}"
    )

    tasks: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}

    def add(key: str, task: Callable[[], Tensor], evaluations: dict[str, float], tolerance: float | None) -> None:
        tasks[key] = task
        result = task()
        rows[key] = {"contestant": key, "tolerance": tolerance, "evaluations": evaluations, "error": error_of(result, x)}

    for tolerance in tolerances:
        for depth, label in ((0, "plain"), (model.config.anderson_depth, "Anderson")):
            run = inverse_of(model, latents, tolerance, depth)
            with torch.no_grad():
                _, info = model.inverse(latents, tolerance, MOST_EVALUATIONS, anderson_depth=depth, return_info=True)
            counts = {"mean": info.evaluations.double().mean().item(), "most": info.evaluations.max().item()}
            add(f"hfblog {label}, {tolerance:g}", run, counts, tolerance)
            rows[f"hfblog {label}, {tolerance:g}"]["converged"] = info.converged.double().mean().item()
        peer_run = FixedPoint(peer, network.lipschitz, tolerance)
        counts = peer_run.count(latents_of_peer)
        add(f"normflows loop, {tolerance:g}", run_on(peer_run, latents_of_peer), counts, tolerance)
    peer_run = FixedPoint(peer, network.lipschitz, None)
    counts = peer_run.count(latents_of_peer)
    add("normflows loop, its stop", run_on(peer_run, latents_of_peer), counts, None)
    # Its `forward` is what its users call; it evaluates g once more, and the series of the log-determinant.
    counts = {kind: count + 1 for kind, count in counts.items()}
    add("normflows forward", run_on(without_gradient(peer), latents_of_peer), counts, None)

    timings = measure(tasks, min(arguments.rounds, 3), arguments.seconds / 4)
    print(f"    {'':<28}{'g mean':>8}{'most':>6}{'ms':>9}{'CPU ms':>9}{'error rms':>11}{'max':>9}")
    for key, row in rows.items():
        row["ms"], row["cpu_ms"] = median(timings[key].wall), median(timings[key].cpu)
        row["rounds"] = asdict(timings[key])
        print(
            f"    {key:<28}{row['evaluations']['mean']:>8.1f}{row['evaluations']['most']:>6.0f}{row['ms']:>9.2f}"
            f"{row['cpu_ms']:>9.2f}{row['error']['rms']:>11.1e}{row['error']['max']:>9.1e}"
            + ("" if row.get("converged", 1) == 1 else f"  {row['converged']:.0%} converged")
        )
    ratios = []
    for tolerance in tolerances:
        fast = f"hfblog Anderson, {tolerance:g}"
        for slow in (f"hfblog plain, {tolerance:g}", f"normflows loop, {tolerance:g}"):
            ratio = {
                "of": slow,
                "to": fast,
                "evaluations": rows[slow]["evaluations"]["mean"] / rows[fast]["evaluations"]["mean"],
                "time": median_ratio(timings[slow].wall, timings[fast].wall),
                "cpu_time": median_ratio(timings[slow].cpu, timings[fast].cpu),
            }
            ratios.append(ratio)
            print(
                f"    {slow} / Anderson: evaluations {ratio['evaluations']:.2f}, time {ratio['time']:.2f}, "
                f"CPU time {ratio['cpu_time']:.2f}"
            )
    return {
        "model": name,
        "network": asdict(network),
        "lipschitz_found": steepness,
        "latents_differ": gap,
        "contestants": list(rows.values()),
        "ratios": ratios,
    }


def inverse_of(model: InvertibleResNetModel, latents: Tensor, tolerance: float, depth: int) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model.inverse(latents, tolerance, MOST_EVALUATIONS, anderson_depth=depth)

    return run


def run_on(function: Callable[[Tensor], Tensor], latents: Tensor) -> Callable[[], Tensor]:
    return lambda: function(latents)


def without_gradient(peer: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(latents: Tensor) -> Tensor:
        with torch.no_grad():
            return peer.forward(latents)

    return run


@torch.no_grad()
def honesty(name: str, network: Network, shape: str, batch: int) -> list[dict[str, Any]]:
    """Round trip of every contestant by its own defaults, in both precisions."""
    rows = []
    for dtype in (torch.float32, torch.float64):
        x = data_for(network, batch, seed=1).to(dtype)
        model = saturated(network, shape, x)
        latents = model.transform(x)
        peer = normflows_copy(model, network).eval()
        for label, depth in (("hfblog plain", 0), ("hfblog Anderson", None)):
            result, info = model.inverse(latents, anderson_depth=depth, return_info=True)
            row = {"contestant": label, "error": error_of(result, x), "converged": info.converged.double().mean().item()}
            row["promised"] = 1e-6 if dtype == torch.float32 else 1e-12
            row["certified"] = info.certified_error.max().item() / math.sqrt(network.event_size)
            row["evaluations"] = info.evaluations.max().item()
            rows.append(row | {"model": name, "dtype": str(dtype).removeprefix("torch.")})
        row = {"contestant": "normflows", "error": error_of(peer.forward(peer.inverse(x)), x)}
        rows.append(row | {"model": name, "dtype": str(dtype).removeprefix("torch.")})
    return rows


def print_honesty(rows: list[dict[str, Any]], trained: list[dict[str, Any]]) -> None:
    print(
        "\nRound trip by each library's defaults: the worst example; hfblog's certificate leaves out how the encoding rounds"
    )
    print(f"    {'':<18}{'rms':>9}{'max':>9}{'tolerance':>11}{'certified rms':>15}{'met':>6}{'most g':>8}")
    for number, row in enumerate(rows):
        if number % 3 == 0:
            print(f"  {row['model']}, {row['dtype']}")
        rest = f"{'none':>11}{'-':>15}{'-':>6}{'-':>8}"
        if "promised" in row:
            rest = f"{row['promised']:>11.0e}{row['certified']:>15.1e}{row['converged']:>6.0%}{row['evaluations']:>8}"
        print(f"    {row['contestant']:<18}{row['error']['rms']:>9.1e}{row['error']['max']:>9.1e}{rest}")
    print("  the models that were trained above, float32, largest entry of any of them:")
    for table in trained:
        errors = {}
        for row in table["contestants"]:
            library = row["contestant"].split()[0]
            errors[library] = max(errors.get(library, 0.0), row["inverse_error"])
        texts = ", ".join(f"{library} {error:.1e}" for library, error in errors.items())
        print(f"    D = {table['network']['event_size']}: {texts}")


def label_of(row: dict[str, Any]) -> str:
    return row["contestant"] + (f", {row['law']['name']}" if row["law"] else "")


def compare_log_dets(network: Network, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What training states as log-determinant where g is as steep as its bound allows, which is where it is hard."""
    x = data_for(network, batch)
    rows = []
    for contestant in contestants_for(network, laws(network.lipschitz)):
        own = saturated(network, "diagonal", x, contestant)
        found = log_det_of_training(own, network, contestant, x, arguments.draws)
        law = asdict(contestant.law) if contestant.law else None
        rows.append({"contestant": contestant.label, "law": law, "log_det": found})
    return {"network": asdict(network), "batch_size": batch, "contestants": rows}


def print_log_dets(table: dict[str, Any]) -> None:
    exact = table["contestants"][0]["log_det"]["exact"]
    print("\nLog-determinant that training states, mean of a batch, nats: error (with standard error) and spread over draws")
    print(f"  1 block, weights and slopes steep, c = {table['network']['lipschitz']:g}, batch {table['batch_size']}")
    print(
        f"  exact {exact:.3f}; normflows' reduce_memory=True states the sum that its gradient needs, not the log-determinant"
    )
    for row in table["contestants"]:
        found = row["log_det"]
        error = f"{found['error']:>12.3f} +- {found['standard_error']:.3f}"
        print(f"    {label_of(row):<48}{error:<24}{found['spread']:>10.3f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="the median over these is printed")
    parser.add_argument("--seconds", type=float, default=0.2, help="about how long a contestant runs in each round")
    parser.add_argument("--draws", type=int, default=30, help="of the training estimators, for their terms and errors")
    parser.add_argument("--quick", action="store_true", help="one round, few draws, fewer models: only to see that it runs")
    parser.add_argument("--output", metavar="FILE.json", help="also write everything, every round too, to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.draws = 1, 0.02, 5
    for name in ("threads", "rounds", "seconds", "draws"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} {getattr(arguments, name)} must be positive")
    if arguments.draws < 2:
        parser.error("--draws must be at least 2: a spread is computed from them")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    quiet()
    torch.set_num_threads(arguments.threads)
    versions = {"torch": torch.__version__, "hfblog": hfblog.__version__, "normflows": importlib.metadata.version("normflows")}
    print(", ".join(f"{name} {version}" for name, version in versions.items()) + f"; {arguments.threads} threads")

    wide, narrow = Network(64, 4, 128), Network(2, 10, 64)
    training = [compare_training(wide, 128, arguments)]
    if not arguments.quick:
        training.append(compare_training(narrow, 256, arguments))

    one = replace(wide, blocks=1, actnorm=False, preactivation=False)
    affine = replace(one, hidden_layers=0)
    cases = [
        ("4 blocks, random orthogonal weights", wide, "random"),
        ("1 block, weights and slopes steep", one, "diagonal"),
        ("1 block, g = -c x", affine, "diagonal"),
        ("1 block, g = -c S x, 0 <= S <= 1", affine, "spectrum"),
    ]
    coefficients = [0.9, 0.98]
    if arguments.quick:
        cases, coefficients = cases[:3:2], [0.9]
    print("\nInverse of 128 examples in 64 dimensions, float64; g: evaluations per block (and example, where they stop alone)")
    print(
        "  tolerances are root mean squares per dimension of a block's error; normflows' is the largest entry's, set by hand"
    )
    inverse, rows = [], []
    for name, network, shape in cases:
        for lipschitz in coefficients:
            print(f"timing the inverse, {name}, c = {lipschitz:g} ...", file=sys.stderr, flush=True)
            case = replace(network, lipschitz=lipschitz)
            inverse.append(compare_inverse(name, case, shape, 128, [1e-8], arguments))
            rows += honesty(f"{name}, c = {lipschitz:g}", case, shape, 128)
    print_honesty(rows, training)
    steep = compare_log_dets(one, 128, arguments)
    print_log_dets(steep)

    if arguments.output:
        content = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": versions,
            "settings": vars(arguments),
            "training": training,
            "inverse": inverse,
            "inverse_by_default": rows,
            "log_det_of_steep_block": steep,
        }
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
