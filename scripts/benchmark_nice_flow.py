"""Run hfblog's NICE flow and other flow libraries side by side, and print the ratios.

    pip install 'hfblog[bench]'
    python scripts/benchmark_nice_flow.py
    python scripts/benchmark_nice_flow.py --peers zuko FrEIA --batch-size 250 --rounds 5 --json benchmark.json
    python scripts/benchmark_nice_flow.py --hidden-size 64 --rounds 1 --seconds 0.1      # only to see that it runs

All contestants are one network: additive couplings with the same coupling networks and a diagonal scaling. They take
turns within each round, so that a drifting machine slows all of them; a ratio is the median over rounds of the ratio
within a round. Two comparisons are made: "box", where a peer keeps its defaults (float32, plain torch.optim.Adam) and
hfblog trains as its recipe does, and "like", where both have the same dtype and the same fused optimiser. The bound is
the speed of the network's matrix products alone (6 flops a weight and sample in training, 2 in sampling), measured in
the same rounds.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import math
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import hfblog  # noqa: E402
from hfblog import NiceFlowConfig, NiceFlowModel  # noqa: E402
from hfblog.training import EMAHook  # noqa: E402

OWN = "hfblog"
LEARNING_RATE = 1e-4
# float32 rounding stays below this; what is further off samples from another model than the one whose density it gives
ROUND_TRIP_LIMIT = 1e-3


@dataclass
class Network:
    """The sizes that all contestants share."""

    event_size: int
    couplings: int
    hidden_size: int
    hidden_layers: int

    @property
    def layer_sizes(self) -> list[int]:
        """Widths of one coupling network, from its input to its output."""
        half = self.event_size // 2
        return [half] + [self.hidden_size] * self.hidden_layers + [half]

    @property
    def products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every matrix product of one encoding or decoding."""
        sizes = self.layer_sizes
        return list(zip(sizes, sizes[1:], strict=False)) * self.couplings

    @property
    def weights(self) -> int:
        return sum(fan_in * fan_out for fan_in, fan_out in self.products)


@dataclass
class Contestant:
    """A flow over ``(batch, D)`` behind one interface; every function takes the module it works with."""

    name: str
    built: str
    model: nn.Module
    encode: Callable[[nn.Module, Tensor], Tensor]
    decode: Callable[[nn.Module, Tensor], Tensor]
    loss: Callable[[nn.Module, Tensor], Tensor]
    sample: Callable[[nn.Module, int], Tensor]
    # Sets the scaling from the standard deviation of each dimension; None where the library does so by itself.
    set_scaling: Callable[[Tensor], None] | None = None

    @property
    def version(self) -> str:
        return hfblog.__version__ if self.name == OWN else importlib.metadata.version(self.name)


# --- contestants ---


def build_hfblog(network: Network, **settings: Any) -> Contestant:
    config = NiceFlowConfig(
        event_shape=[network.event_size],
        num_coupling_layers=network.couplings,
        hidden_size=network.hidden_size,
        num_hidden_layers=network.hidden_layers,
        **({"prior": "normal", "num_levels": None, "dequantization": "none"} | settings),
    )
    return Contestant(
        name=OWN,
        built="NiceFlowModel",
        model=NiceFlowModel(config),
        encode=lambda model, x: model.encode(x)[0],
        decode=lambda model, latents: model.decode(latents),
        loss=lambda model, x: model(x).loss,
        sample=lambda model, n: model.sample(n),
    )


def build_zuko(network: Network) -> Contestant:
    from zuko.distributions import DiagNormal
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.flows.gaussianization import ElementWiseTransform
    from zuko.lazy import Flow, UnconditionalDistribution
    from zuko.transforms import AdditiveTransform

    size = network.event_size
    couplings = [
        GeneralCouplingTransform(
            size,
            mask=torch.arange(size) % 2 == layer % 2,
            univariate=AdditiveTransform,
            shapes=[()],
            hidden_features=network.layer_sizes[1:-1],
        )
        for layer in range(network.couplings)
    ]
    scaling = ElementWiseTransform(size)
    for parameter in scaling.parameters():
        nn.init.zeros_(parameter)
    base = UnconditionalDistribution(DiagNormal, torch.zeros(size), torch.ones(size), buffer=True)
    return Contestant(
        name="zuko",
        built="its NICE is affine; GeneralCouplingTransform with AdditiveTransform, ElementWiseTransform, DiagNormal",
        model=Flow([*couplings, scaling], base),
        encode=lambda model, x: model().transform(x),
        decode=lambda model, latents: model().transform.inv(latents),
        loss=lambda model, x: -model().log_prob(x).mean(),
        sample=lambda model, n: model().sample((n,)),
        set_scaling=lambda std: scaling.phi[1].copy_(-std.log()),
    )


def build_normflows(network: Network) -> Contestant:
    import normflows

    size = network.event_size
    # Listed from latents to data, the library's forward direction.
    flows = [normflows.flows.AffineConstFlow(size, shift=False)]
    for _ in range(network.couplings):
        net = normflows.nets.MLP(network.layer_sizes)
        flows += [normflows.flows.AffineCouplingBlock(net, scale=False), normflows.flows.Permute(size, mode="swap")]
    base = normflows.distributions.base.DiagGaussian(size, trainable=False)
    return Contestant(
        name="normflows",
        built="AffineCouplingBlock(scale=False), Permute, AffineConstFlow(shift=False), DiagGaussian",
        model=normflows.NormalizingFlow(base, flows),
        encode=lambda model, x: model.inverse(x),
        decode=lambda model, latents: model.forward(latents),
        loss=lambda model, x: model.forward_kld(x),
        sample=lambda model, n: model.sample(n)[0],
        set_scaling=lambda std: flows[0].s.copy_(std.log()),
    )


def build_nflows(network: Network) -> Contestant:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms import ActNorm, AdditiveCouplingTransform, CompositeTransform

    class Net(MLP):
        def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
            # Its couplings hand a context to their network, its MLP takes none.
            return super().forward(inputs)

    size = network.event_size
    couplings = [
        AdditiveCouplingTransform(
            torch.arange(size) % 2 != layer % 2,
            lambda inputs, outputs: Net([inputs], [outputs], network.layer_sizes[1:-1]),
        )
        for layer in range(network.couplings)
    ]
    return Contestant(
        name="nflows",
        built="AdditiveCouplingTransform, ActNorm for the scaling (it adds a shift), StandardNormal",
        model=Flow(CompositeTransform([*couplings, ActNorm(size)]), StandardNormal([size])),
        encode=lambda model, x: model.transform_to_noise(x),
        decode=lambda model, latents: model._transform.inverse(latents)[0],
        loss=lambda model, x: -model.log_prob(x).mean(),
        sample=lambda model, n: model.sample(n),
    )


def build_freia(network: Network) -> Contestant:
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import ActNorm, NICECouplingBlock

    if network.couplings % 2:
        raise ValueError(f"FrEIA's block holds two couplings, so --couplings {network.couplings} must be even")

    def net(inputs: int, outputs: int) -> nn.Module:
        sizes = [inputs, *network.layer_sizes[1:-1]]
        layers = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        latents, log_det = model(x)
        return (0.5 * (latents.square() + math.log(2 * math.pi)).sum(1) - log_det).mean()

    model = SequenceINN(network.event_size)
    for _ in range(network.couplings // 2):
        model.append(NICECouplingBlock, subnet_constructor=net)
    model.append(ActNorm)
    return Contestant(
        name="FrEIA",
        built="NICECouplingBlock (two couplings each), ActNorm for the scaling (it adds a shift); no prior of its own",
        model=model,
        encode=lambda model, x: model(x)[0],
        decode=lambda model, latents: model(latents, rev=True)[0],
        loss=loss,
        sample=lambda model, n: model(torch.randn(n, network.event_size), rev=True, jac=False)[0],
    )


BUILDERS = {"zuko": build_zuko, "normflows": build_normflows, "nflows": build_nflows, "FrEIA": build_freia}


@torch.no_grad()
def redraw(contestant: Contestant, images: Tensor) -> None:
    """The same start for all: ReLU's gain in every matrix, so that every coupling counts, and a scaling from data."""
    for parameter in contestant.model.parameters():
        if parameter.ndim == 2 and min(parameter.shape) > 1:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
    if contestant.name == OWN:
        contestant.model.initialize(images)
        return
    # nflows and FrEIA set their scaling from the first batch they see in training.
    contestant.model.train()
    latents = contestant.encode(contestant.model, images)
    if contestant.set_scaling is not None:
        contestant.set_scaling(latents.std(0).clamp_min(1e-3))


def in_bfloat16(contestant: Contestant) -> nn.Module:
    """The model with bfloat16 weights: hfblog's as `from_pretrained` loads it, a peer's by torch's own conversion."""
    if contestant.name != OWN:
        return copy.deepcopy(contestant.model).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        contestant.model.save_pretrained(folder)
        return NiceFlowModel.from_pretrained(folder, dtype=torch.bfloat16)


# --- what is timed ---


@dataclass
class Comparison:
    """One column of ratios: which task of hfblog stands against which of the peers."""

    kind: str
    title: str
    own: str
    peer: str
    dtype: str


TRAINING = (
    Comparison("box", "hfblog as its recipe trains, peers float32 and plain Adam", "recipe", "plain", "bfloat16"),
    Comparison("like", "float32, Adam(fused=True)", "float32", "float32", "float32"),
    Comparison("like", "bfloat16 autocast, Adam(fused=True)", "autocast", "autocast", "bfloat16"),
)
SAMPLING = (
    Comparison("box", "hfblog bfloat16 weights (see the round trip), peers float32", "weights", "float32", "bfloat16"),
    Comparison("like", "float32", "float32", "float32", "float32"),
    # No column under autocast: in evaluation hfblog keeps float32 there, so that sampling stays the exact inverse.
    Comparison("like", "bfloat16 weights (see the round trip)", "weights", "weights", "bfloat16"),
)


def autocast(mode: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if mode in ("autocast", "recipe") else nullcontext()


def training_step(contestant: Contestant, mode: str, ema_decay: float) -> Callable[[Tensor], None]:
    model = contestant.model.train()
    if mode == "recipe":
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1.0, fused=True)
        if ema_decay:
            EMAHook(optimizer, ema_decay)
    elif mode == "plain":
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(images: Tensor) -> None:
        optimizer.zero_grad()
        with autocast(mode):
            loss = contestant.loss(model, images)
        loss.backward()
        optimizer.step()

    return step


def sampling_step(contestant: Contestant, mode: str, model: nn.Module) -> Callable[[Tensor], None]:
    model.eval()

    def step(images: Tensor) -> None:
        with torch.no_grad(), autocast(mode):
            contestant.sample(model, len(images))

    return step


def products_step(network: Network, dtype: torch.dtype, training: bool) -> Callable[[Tensor], None]:
    """Nothing but the network's matrix products: the bound of whatever computes it with torch."""
    weights = [torch.randn(fan_out, fan_in).to(dtype) for fan_in, fan_out in network.products]
    buffers: dict[Any, Tensor] = {}

    def buffer(*shape: Any) -> Tensor:
        if shape not in buffers:
            buffers[shape] = torch.randn(shape[:2]).to(dtype)
        return buffers[shape]

    def step(images: Tensor) -> None:
        batch = len(images)
        with torch.no_grad():
            for weight in weights:
                fan_out, fan_in = weight.shape
                torch.mm(buffer(batch, fan_in), weight.t(), out=buffer(batch, fan_out, "output"))
            for weight in weights[::-1] if training else ():
                fan_out, fan_in = weight.shape
                gradient = buffer(batch, fan_out, "output")
                torch.mm(gradient, weight, out=buffer(batch, fan_in, "gradient"))
                torch.mm(gradient.t(), buffer(batch, fan_in), out=buffer(fan_out, fan_in, "weight"))

    return step


@dataclass
class Timing:
    """Samples per second of one task in each round."""

    wall: list[float]
    cpu: list[float]


def measure(
    tasks: dict[tuple[str, str], Callable[[Tensor], None]], images: Tensor, rounds: int, seconds: float
) -> dict[tuple[str, str], Timing]:
    """Time all tasks in turn, ``rounds`` times, each for about ``seconds``."""
    repeats, timings = {}, {}
    for key, step in tasks.items():
        step(images)
        start = time.perf_counter()
        step(images)
        repeats[key] = max(2, math.ceil(seconds / (time.perf_counter() - start)))
        timings[key] = Timing([], [])
    for _ in range(rounds):
        for key, step in tasks.items():
            # The others' weights are in the caches now.
            step(images)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[key]):
                step(images)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            timings[key].wall.append(repeats[key] * len(images) / wall)
            timings[key].cpu.append(repeats[key] * len(images) / cpu)
    return timings


def median_ratio(first: list[float], second: list[float]) -> float:
    return median(a / b for a, b in zip(first, second, strict=True))


def round_trip(contestant: Contestant, mode: str, model: nn.Module, images: Tensor) -> dict[str, float]:
    model.eval()
    if mode == "weights" and contestant.name != OWN:
        # The input's dtype has to be that of the weights.
        images = images.to(torch.bfloat16)
    with torch.no_grad(), autocast(mode):
        error = (contestant.decode(model, contestant.encode(model, images)).double() - images.double()).abs()
    return {"max": error.max().item(), "mean": error.mean().item()}


# --- the run ---


def load_contestants(names: list[str], network: Network, images: Tensor) -> list[Contestant]:
    contestants = [build_hfblog(network)]
    for name in names:
        try:
            contestants.append(BUILDERS[name](network))
        except ImportError as error:
            # Not there, or older than what is used of it.
            print(f"{name} is skipped ({error}); install it with: pip install 'hfblog[bench]'")
    for contestant in contestants:
        redraw(contestant, images)
    return contestants


def check_round_trips(contestants: list[Contestant], images: Tensor) -> tuple[list[Contestant], list[dict[str, Any]]]:
    """Print every contestant's round trip; those that are not inverted in float32 are left out."""
    kept, rows = [], []
    print("Round trip, largest (and mean) |decode(encode(x)) - x| for x in [0, 1]")
    for contestant in contestants:
        errors = {mode: round_trip(contestant, mode, contestant.model, images) for mode in ("float32", "autocast")}
        try:
            errors["weights"] = round_trip(contestant, "weights", in_bfloat16(contestant), images)
        except RuntimeError as error:
            print(f"  {contestant.name} does not run with bfloat16 weights: {str(error).splitlines()[0]}")
        texts = [
            f"{label} {errors[mode]['max']:.1e} ({errors[mode]['mean']:.0e})" if mode in errors else f"{label} -"
            for mode, label in (("float32", "float32"), ("autocast", "bf16 autocast"), ("weights", "bf16 weights"))
        ]
        print(f"  {contestant.name:<10} " + "   ".join(texts))
        rows.append({"contestant": contestant.name, "errors": errors})
        if errors["float32"]["max"] < ROUND_TRIP_LIMIT:
            kept.append(contestant)
        else:
            print(f"  {contestant.name} is left out: it does not return to x within {ROUND_TRIP_LIMIT:g}")
    if not kept or kept[0].name != OWN:
        sys.exit("error: hfblog's own round trip fails; there is nothing to compare")
    return kept, rows


def build_tasks(
    contestants: list[Contestant], network: Network, training: bool, ema_decay: float, images: Tensor
) -> dict[tuple[str, str], Callable[[Tensor], None]]:
    tasks: dict[tuple[str, str], Callable[[Tensor], None]] = {}
    for comparison in TRAINING if training else SAMPLING:
        dtype = getattr(torch, comparison.dtype)
        for contestant in contestants:
            mode = comparison.own if contestant.name == OWN else comparison.peer
            key = (contestant.name, mode)
            if key in tasks:
                continue
            if training and mode == "recipe":
                # The recipe's other choices, so that the comparison pays for them: grey levels, logistic prior.
                trained = build_hfblog(network, prior="logistic", num_levels=256, dequantization="uniform")
                redraw(trained, images)
                tasks[key] = training_step(trained, mode, ema_decay)
            elif training:
                tasks[key] = training_step(contestant, mode, ema_decay)
            else:
                model = in_bfloat16(contestant) if mode == "weights" else contestant.model
                step = sampling_step(contestant, mode, model)
                try:
                    step(images[:2])
                except RuntimeError as error:
                    if contestant.name == OWN or mode != "weights":
                        raise
                    print(f"{contestant.name} does not sample with bfloat16 weights: {str(error).splitlines()[0]}")
                    continue
                tasks[key] = step
        tasks.setdefault(("products", comparison.dtype), products_step(network, dtype, training))
    return tasks


def report(
    title: str,
    comparisons: tuple[Comparison, ...],
    contestants: list[Contestant],
    timings: dict[tuple[str, str], Timing],
    flops: int,
) -> list[dict[str, Any]]:
    """Print one table; returns its rows."""
    rows = []
    print(f"\n{title}")
    print(f"  {'':<12}{'samples/s':>11}{'per CPU-s':>11}{'hfblog/peer':>13}{'in CPU time':>13}{'of the bound':>14}")
    for comparison in comparisons:
        print(f"  {comparison.kind}: {comparison.title}")
        own = timings[OWN, comparison.own]
        for contestant in contestants:
            mode = comparison.own if contestant.name == OWN else comparison.peer
            timing = timings.get((contestant.name, mode))
            if timing is None:
                continue
            # A peer's float32 default is held against the float32 bound, also where hfblog has another dtype.
            dtype = "float32" if mode in ("float32", "plain") else "bfloat16"
            row = {
                "comparison": comparison.kind,
                "setting": comparison.title,
                "contestant": contestant.name,
                "mode": mode,
                "samples_per_second": median(timing.wall),
                "samples_per_cpu_second": median(timing.cpu),
                "ratio": median_ratio(own.wall, timing.wall),
                "ratio_cpu": median_ratio(own.cpu, timing.cpu),
                "share_of_bound": median_ratio(timing.wall, timings["products", dtype].wall),
                "rounds": asdict(timing),
            }
            rows.append(row)
            ratios = f"{'':>26}"
            if contestant.name != OWN:
                ratios = f"{row['ratio']:>13.2f}{row['ratio_cpu']:>13.2f}"
            print(
                f"    {contestant.name:<10}{row['samples_per_second']:>11,.0f}{row['samples_per_cpu_second']:>11,.0f}"
                f"{ratios}{row['share_of_bound']:>14.0%}"
            )
    for dtype in dict.fromkeys(comparison.dtype for comparison in comparisons):
        rate = median(timings["products", dtype].wall)
        print(f"  bound, {dtype}: {rate:,.0f} samples/s, its products alone at {rate * flops / 1e9:,.0f} GFLOP/s")
        rows.append({"bound": dtype, "samples_per_second": rate, "flop_per_second": rate * flops})
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", default=list(BUILDERS), metavar="NAME", help=f"of {', '.join(BUILDERS)}")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[128, 500])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="the median over these is printed")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each contestant runs in each round")
    parser.add_argument("--event-size", type=int, default=784, help="dimensions of one example")
    parser.add_argument("--couplings", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=1000)
    parser.add_argument("--hidden-layers", type=int, default=5)
    parser.add_argument(
        "--ema-decay", type=float, default=0.999, help="of the recipe's average of the weights, in box; 0 for none"
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything, every round too, to this file")
    arguments = parser.parse_args()
    known = {name.lower(): name for name in BUILDERS}
    for name in arguments.peers:
        if name.lower() not in known:
            parser.error(f"unknown peer {name!r}; it must be one of {', '.join(BUILDERS)}")
    arguments.peers = list(dict.fromkeys(known[name.lower()] for name in arguments.peers))
    for name in ("threads", "rounds", "seconds", "event_size", "couplings", "hidden_size", "hidden_layers"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be positive")
    if min(arguments.batch_size) < 2:
        parser.error(f"--batch-size {min(arguments.batch_size)} must be at least 2: the scaling is set from data")
    if arguments.event_size % 2:
        parser.error(f"--event-size {arguments.event_size} must be even: half of the dimensions move the other half")
    if not 0 <= arguments.ema_decay < 1:
        parser.error(f"--ema-decay {arguments.ema_decay} must lie in [0, 1)")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = Network(arguments.event_size, arguments.couplings, arguments.hidden_size, arguments.hidden_layers)
    images = torch.randint(256, (max(arguments.batch_size), network.event_size)) / 255
    try:
        contestants = load_contestants(arguments.peers, network, images)
    except ValueError as error:
        sys.exit(f"error: {error}")

    print(
        f"NICE, {network.event_size} dimensions, {network.couplings} additive couplings of {network.hidden_layers} x "
        f"{network.hidden_size} ReLU units; torch {torch.__version__}, {arguments.threads} threads"
    )
    for contestant in contestants:
        parameters = sum(p.numel() for p in contestant.model.parameters())
        print(f"  {contestant.name:<10} {contestant.version:<8} {parameters:>12,} parameters; {contestant.built}")
    recipe = "bfloat16 autocast, AdamW(fused=True), logistic prior, dequantisation"
    if arguments.ema_decay:
        recipe += f", average of the weights with decay {arguments.ema_decay}"
    print(f"  the prior is normal; hfblog's recipe: {recipe}\n")
    contestants, trips = check_round_trips(contestants, images)

    tables = []
    for training, title in ((True, "Training step"), (False, "Sampling")):
        tasks = build_tasks(contestants, network, training, arguments.ema_decay, images)
        # Two flops a weight and sample for each product: forward, and the gradients of the input and of the weight.
        flops = (6 if training else 2) * network.weights
        for batch in arguments.batch_size:
            print(f"timing {title.lower()}, batch {batch} ...", file=sys.stderr, flush=True)
            timings = measure(tasks, images[:batch], arguments.rounds, arguments.seconds)
            comparisons = TRAINING if training else SAMPLING
            rows = report(f"{title}, batch {batch}", comparisons, contestants, timings, flops)
            tables.append({"measure": title, "batch_size": batch, "rows": rows})

    if arguments.json:
        content = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": {"torch": torch.__version__} | {c.name: c.version for c in contestants},
            "settings": vars(arguments),
            "round_trip": trips,
            "tables": tables,
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        print(f"\nwritten to {arguments.json}")


if __name__ == "__main__":
    main()
