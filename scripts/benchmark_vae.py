"""pythae's VAE beside hfblog's: speed of training, and -log p(x) of test images after the same training.

    pip install pythae
    python scripts/benchmark_vae.py speed
    python scripts/benchmark_vae.py speed --rounds 1 --steps 5                          # only to see that it runs
    python scripts/benchmark_vae.py likelihood scripts/recipes/vae_mnist.yaml --data ylecun/mnist --into outputs/vae_mnist
    python scripts/benchmark_vae.py likelihood scripts/recipes/vae_mnist.yaml --data mnist-5k --into outputs/trial --epochs 2

**speed**: training steps at 784-512-16, pythae's default network, batches of 100 binary images; the same layers in hfblog, and
before anything is timed the same loss for the same weights and noise. Contestants take turns within each round, so that a
drifting machine slows all of them; a ratio is the median over rounds of the ratio within a round. "box" stands against
pythae's own trainer (float32, Adam), "like for like" against pythae's model in the same loop as ours, with the same dtype and
the same fused Adam. In the plain loops both take binary images as they are; in the Trainer hfblog does what its recipe asks,
drawing pixels and averaging weights too. Progress bars are off, what happens between epochs (validation, checkpoints) is not
timed, and freed memory is kept for all, as hfblog's training does for itself. The bound is the time of the network's matrix
products alone.

**likelihood**: pythae's VAE under pythae's own trainer, with the recipe's training and validation images, epochs, batch size
and latent dimension, keeping the epoch with the least validation loss as the recipe does. Training images are 0 or 1, drawn
anew every time an image is taken, by a torch dataset handed to pythae's trainer: what hfblog's model does itself. Validation
and test images are those that `VAEModel.binarize` makes of them in evaluation, and so are the importance samples' normal
numbers: both models are scored on the same events with the same noise. Variants:

    default       pythae as it comes: 784-512-K, ReLU, Adam with learning rate 1e-4, constant
    same-layers   the recipe's layers as pythae's encoder and decoder, with the recipe's learning rate, and the cosine that
                  pythae's trainer offers (a step an epoch, no warm-up); it has no average of the weights

The importance-weighted bound is computed here, from pythae's encoder and from its decoder without the last sigmoid: where a
float32 probability rounds to 1, binary cross-entropy would be cut at 100 nats. It must agree with a loop over single codes in
float64, and with `VAEModel.log_likelihood` where that model has pythae's weights; pythae's `get_nll`, with other noise, is
printed beside it. The figures go to FOLDER/peer.json as rows for the card.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import logging
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402

from hfblog import VAEConfig, VAEModel, recipes  # noqa: E402
from hfblog.data import TensorTable  # noqa: E402
from hfblog.evaluation import hardware, versions  # noqa: E402
from hfblog.training import Trainer, build_training_arguments, keep_freed_memory  # noqa: E402

try:
    from pythae.data.datasets import BaseDataset, DatasetOutput
    from pythae.models import VAE as PeerVAE
    from pythae.models import VAEConfig as PeerConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainHistoryCallback
except ImportError as error:
    sys.exit(f"error: {error}; the benchmark needs its peer: pip install pythae")

SPEED_RECIPE = Path(__file__).parent / "recipes" / "vae_mnist.yaml"
EVENT_SHAPE, PEER_HIDDEN = (1, 28, 28), 512
LEARNING_RATE = 1e-4
CODES_AT_A_TIME = 5000


def peer_version() -> str:
    return importlib.metadata.version("pythae")


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def copy_weights(peer: PeerVAE, own: VAEModel) -> None:
    """Give hfblog's model the function that pythae's has."""
    heads = own.bottleneck.heads
    targets = [*own.encoder.layers, heads.mean, heads.scale, *own.decoder.body.layers, own.decoder.output]
    for source, target in zip(linears(peer.encoder) + linears(peer.decoder), targets, strict=True):
        target.load_state_dict(source.state_dict())
    if not isinstance(peer.encoder, SameEncoder):
        # ours takes 2 x - 1 where pythae's takes x
        first = own.encoder.layers[0]
        first.weight /= 2
        first.bias += first.weight.sum(1)


# --- speed ---

PEER_TRAINER = "pythae, its BaseTrainer"
PEER_LOOP, PEER_HALF = "pythae, plain loop", "pythae, plain loop, bf16"
OWN_LOOP, OWN_HALF = "hfblog, plain loop", "hfblog, plain loop, bf16"
OWN_TRAINER = "hfblog, Trainer as in the recipe"
BOUND, BOUND_HALF = "matrix products, f32", "matrix products, bf16"
COMPARISONS = (
    ("box", OWN_TRAINER, PEER_TRAINER),
    ("box", OWN_HALF, PEER_TRAINER),
    ("like for like", OWN_LOOP, PEER_LOOP),
    ("like for like", OWN_HALF, PEER_HALF),
    ("of the bound", OWN_LOOP, BOUND),
    ("of the bound", OWN_HALF, BOUND_HALF),
    ("of the bound", OWN_TRAINER, BOUND_HALF),
)
# Runs some steps, and returns their seconds of the clock and of the CPU.
Run = Callable[[int], tuple[float, float]]


def timed(function: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def loop(model: nn.Module, loss_of: Callable[[Tensor], Tensor], images: Tensor, batch: int, half: bool) -> Run:
    """The same loop for every model: shuffled batches, autocast where asked for, fused Adam."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def run(steps: int) -> tuple[float, float]:
        def work() -> None:
            for rows in torch.randperm(len(images))[: steps * batch].split(batch):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                    loss = loss_of(images[rows])
                loss.backward()
                optimizer.step()

        return timed(work)

    return run


def peer_trainer(model: PeerVAE, images: Tensor, batch: int, folder: str) -> Run:
    """An epoch of pythae's trainer over as many images as the steps need."""
    settings = {"output_dir": folder, "per_device_train_batch_size": batch, "learning_rate": LEARNING_RATE, "no_cuda": True}

    def run(steps: int) -> tuple[float, float]:
        data = BaseDataset(images[: steps * batch], torch.ones(steps * batch))
        trainer = BaseTrainer(model, data, training_config=BaseTrainerConfig(**settings))
        trainer.prepare_training()
        return timed(lambda: trainer.train_step(1))

    return run


class Clock(transformers.TrainerCallback):
    """Times what lies between two steps of a `transformers.Trainer`."""

    def __init__(self, first: int, last: int):
        self.times: dict[int, tuple[float, float]] = {}
        self.first, self.last = first, last

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (self.first, self.last):
            self.times[state.global_step] = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        (wall, cpu), (wall_end, cpu_end) = self.times[self.first], self.times[self.last]
        return wall_end - wall, cpu_end - cpu


def own_trainer(model: VAEModel, images: Tensor, batch: int, folder: str) -> Run:
    """hfblog's Trainer with the recipe's training section, but for the batch size and what happens between epochs."""
    warm_up = 5

    def run(steps: int) -> tuple[float, float]:
        changes = {
            "per_device_train_batch_size": batch,
            "max_steps": warm_up + steps,
            "eval_strategy": "'no'",
            "save_strategy": "'no'",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        recipe = recipes.load_recipe(SPEED_RECIPE, [f"training.{name}={value}" for name, value in changes.items()])
        trainer = Trainer(
            model=model,
            args=build_training_arguments(recipe, Path(folder)),
            train_dataset=TensorTable({"pixel_values": images[: (warm_up + steps) * batch]}),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        clock = Clock(warm_up, warm_up + steps)
        trainer.add_callback(clock)
        trainer.train()
        return clock.seconds()

    return run


def products(latent_dim: int, batch: int, dtype: torch.dtype) -> Run:
    """Nothing but the matrix products of a step: the bound of whatever computes it with torch."""
    sizes = [(784, PEER_HIDDEN), (PEER_HIDDEN, 2 * latent_dim), (latent_dim, PEER_HIDDEN), (PEER_HIDDEN, 784)]
    layers = []
    for number, (fan_in, fan_out) in enumerate(sizes):
        x, weight, grad = (torch.randn(shape).to(dtype) for shape in ((batch, fan_in), (fan_out, fan_in), (batch, fan_out)))
        outputs = torch.empty_like(grad), torch.empty_like(weight), torch.empty_like(x)
        # the images need no gradient
        layers.append((x, weight, grad, outputs, number > 0))

    def work(steps: int) -> None:
        for _ in range(steps):
            for x, weight, grad, (output, d_weight, d_x), needs_grad in layers:
                torch.mm(x, weight.T, out=output)
                torch.mm(grad.T, x, out=d_weight)
                if needs_grad:
                    torch.mm(grad, weight, out=d_x)

    return lambda steps: timed(lambda: work(steps))


def speed(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    logging.disable(logging.INFO)
    keep_freed_memory()
    batch, latent_dim = arguments.batch, arguments.latent_dim
    # as many lit pixels as MNIST has
    images = (torch.rand((arguments.steps + 10) * batch, *EVENT_SHAPE) < 0.13).float()

    def new_peer() -> PeerVAE:
        return PeerVAE(PeerConfig(input_dim=EVENT_SHAPE, latent_dim=latent_dim, reconstruction_loss="bce"))

    def new_own(peer: PeerVAE, binarization: str) -> VAEModel:
        shape = {"event_shape": EVENT_SHAPE, "hidden_sizes": (PEER_HIDDEN,), "hidden_act": "relu", "latent_dim": latent_dim}
        own = VAEModel(VAEConfig(**shape, binarization=binarization))
        copy_weights(peer, own)
        return own.train()

    peer = new_peer().train()
    own = new_own(peer, "none")
    losses = []
    for compute in (lambda: peer({"data": images[:batch]}).loss, lambda: own(images[:batch]).loss):
        torch.manual_seed(1)
        losses.append(compute().item())
    if abs(losses[1] / losses[0] - 1) > 1e-5:
        sys.exit(f"error: with the same weights and noise pythae's loss is {losses[0]}, hfblog's {losses[1]}")
    count = sum(p.numel() for p in own.parameters())
    if count != sum(p.numel() for p in peer.parameters()):
        sys.exit("error: the networks have different numbers of parameters")

    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Run] = {PEER_TRAINER: peer_trainer(new_peer(), images, batch, folder)}
        for half in (False, True):
            one, other = new_peer(), new_own(peer, "none")
            names = (PEER_HALF, OWN_HALF) if half else (PEER_LOOP, OWN_LOOP)
            contestants[names[0]] = loop(one, lambda x, model=one: model({"data": x}).loss, images, batch, half)
            contestants[names[1]] = loop(other, lambda x, model=other: model(x).loss, images, batch, half)
        contestants[OWN_TRAINER] = own_trainer(new_own(peer, "stochastic"), images, batch, folder)
        contestants[BOUND] = products(latent_dim, batch, torch.float32)
        contestants[BOUND_HALF] = products(latent_dim, batch, torch.bfloat16)
        rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contestants}
        for number in range(arguments.rounds + 1):
            print(f"round {number} of {arguments.rounds} ...", file=sys.stderr, flush=True)
            for name, run in contestants.items():
                # before the first round a few steps, to warm up
                steps = arguments.steps if number else min(5, arguments.steps)
                for kept, seconds in zip(rates[name], run(steps), strict=True):
                    if number:
                        kept.append(steps * batch / seconds)

    print(
        f"VAE 784-{PEER_HIDDEN}-{latent_dim}, {count:,} parameters, batch {batch}; {arguments.rounds} rounds of "
        f"{arguments.steps} steps; losses with the same weights and noise: {losses[0]:.4f} and {losses[1]:.4f}"
    )
    print(f"{hardware()}, {arguments.threads} thread(s); pythae {peer_version()}, {versions()}\n")
    print(f"{'training':<36}{'samples/s':>11}{'per CPU-s':>11}")
    for name, (wall, cpu) in rates.items():
        print(f"{name:<36}{median(wall):>11,.0f}{median(cpu):>11,.0f}")
    print(f"\n{'ratio':<84}{'by clock':>9}{'by CPU':>8}")
    ratios = []
    for kind, first, second in COMPARISONS:
        ratio = [median(a / b for a, b in zip(*pair, strict=True)) for pair in zip(rates[first], rates[second], strict=True)]
        ratios.append({"kind": kind, "of": first, "to": second, "clock": ratio[0], "cpu": ratio[1]})
        print(f"{f'{kind}: {first} / {second}':<84}{ratio[0]:>8.2f}x{ratio[1]:>7.2f}x")
    if arguments.json:
        content = {
            "hardware": hardware(),
            "versions": versions() | {"pythae": peer_version()},
            "settings": {name: value for name, value in vars(arguments).items() if name != "function"},
            "ratios": ratios,
            "samples_per_second": {name: {"clock": wall, "cpu": cpu} for name, (wall, cpu) in rates.items()},
        }
        Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten to {arguments.json}")


# --- likelihood ---


class Binarized(torch.utils.data.Dataset):
    """Images whose pixels are drawn every time that one is taken: 1 with the probability that the image states."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> DatasetOutput:
        image = self.images[index]
        return DatasetOutput(data=(torch.rand_like(image) < image).to(image.dtype))


def hidden_layers(sizes: list[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), ACT2FN[activation]]
    return layers


class SameEncoder(BaseEncoder):
    """hfblog's layers behind pythae's interface."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        sizes = [config.event_size, *config.hidden_sizes]
        self.layers = nn.Sequential(*hidden_layers(sizes, config.hidden_act))
        self.embedding = nn.Linear(sizes[-1], config.latent_dim)
        self.log_var = nn.Linear(sizes[-1], config.latent_dim)

    def forward(self, x: Tensor) -> ModelOutput:
        features = self.layers((2 * x - 1).flatten(1))
        return ModelOutput(embedding=self.embedding(features), log_covariance=self.log_var(features))


class SameDecoder(BaseDecoder):
    def __init__(self, config: VAEConfig):
        super().__init__()
        sizes = [config.latent_dim, *config.hidden_sizes[::-1]]
        output = nn.Linear(sizes[-1], config.event_size)
        self.layers = nn.Sequential(*hidden_layers(sizes, config.hidden_act), output, nn.Sigmoid())
        self.event_shape = tuple(config.event_shape)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.layers(z).unflatten(1, self.event_shape))


def without_sigmoid(decoder: nn.Module) -> nn.Module:
    """A copy of a decoder that gives logits."""
    decoder = copy.deepcopy(decoder)
    found = [
        (module, name)
        for module in decoder.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Sigmoid)
    ]
    if len(found) != 1:
        sys.exit(f"error: one sigmoid is expected in pythae's decoder, there are {len(found)}")
    setattr(*found[0], nn.Identity())
    return decoder


@torch.no_grad()
def negative_log_likelihood(model: PeerVAE, images: Tensor, noise_of: Callable[[slice], Tensor]) -> Tensor:
    """Importance-weighted bound on -log p(x) in nats of binary images, ``(batch,)``.

    Args:
        noise_of: standard normal numbers ``(rows, samples, K)`` of a slice of the images.
    """
    decoder = without_sigmoid(model.decoder)
    rows, found, start = 1, [], 0
    while start < len(images):
        part = slice(start, start + rows)
        x, noise = images[part], noise_of(part)
        encoded = model.encoder(x)
        log_var = encoded.log_covariance[:, None]
        z = encoded.embedding[:, None] + (log_var / 2).exp() * noise
        logits = decoder(z.flatten(0, 1))["reconstruction"].flatten(1).unflatten(0, z.shape[:2])
        log_p_x = (logits * x.flatten(1)[:, None]).sum(2) - F.softplus(logits).sum(2)
        # log p(z) - log q(z|x); the logarithms of 2 pi cancel
        log_weights = log_p_x + 0.5 * (noise.square() - z.square() + log_var).sum(2)
        found.append(math.log(noise.shape[1]) - log_weights.double().logsumexp(1))
        start += rows
        rows = max(1, CODES_AT_A_TIME // noise.shape[1])
    return torch.cat(found)


@torch.no_grad()
def by_hand(model: PeerVAE, image: Tensor, noise: Tensor) -> float:
    """The same of one image, a code at a time, in float64, from the decoder's probabilities."""
    model = copy.deepcopy(model).double()
    image = image.double()
    encoded = model.encoder(image[None])
    means, deviations = encoded.embedding[0].tolist(), (encoded.log_covariance[0] / 2).exp().tolist()
    weights = []
    for draws in noise.tolist():
        codes = [mean + deviation * draw for mean, deviation, draw in zip(means, deviations, draws, strict=True)]
        found = model.decoder(torch.tensor([codes], dtype=torch.float64, device=image.device))["reconstruction"][0]
        log_weight = math.fsum(torch.where(image == 1, found, 1 - found).clamp_min(1e-300).log().flatten().tolist())
        for code, draw, deviation in zip(codes, draws, deviations, strict=True):
            log_prior = -0.5 * code**2 - 0.5 * math.log(2 * math.pi)
            log_posterior = -0.5 * draw**2 - 0.5 * math.log(2 * math.pi) - math.log(deviation)
            log_weight += log_prior - log_posterior
        weights.append(log_weight)
    largest = max(weights)
    return -(largest + math.log(math.fsum(math.exp(weight - largest) for weight in weights) / len(weights)))


def check_likelihood(model: PeerVAE, own: VAEModel, images: Tensor, binary: Tensor, nll: Tensor, num_samples: int) -> None:
    """Compare the figures of some images with those of two other ways; end the program where they differ."""
    few, more = 3, 100
    hand = [by_hand(model, binary[row], own.noise_of(images[row : row + 1], num_samples)[0]) for row in range(few)]
    off_hand = max(abs(one - other) for one, other in zip(hand, nll[:few].tolist(), strict=True))
    copy_weights(model, own)
    off_own = (own.eval().log_likelihood(images[:more], num_samples) + nll[:more]).abs().max().item()
    with torch.no_grad():
        theirs = -model.get_nll(binary[:more], n_samples=num_samples, batch_size=num_samples)
    print(
        f"  checks: at most {off_hand:.1e} nats from a loop over single codes in float64 ({few} images), {off_own:.1e} from "
        f"VAEModel.log_likelihood with the same weights ({more}); pythae's get_nll {theirs:.2f}, here "
        f"{nll[:more].mean().item():.2f} ({more})"
    )
    if not max(off_hand, off_own) < 5e-3:
        sys.exit("error: the likelihood is not computed rightly")


def build_variant(name: str, recipe: recipes.Recipe, config: VAEConfig, epochs: int) -> tuple[PeerVAE, VAEModel, dict, str]:
    """pythae's model, hfblog's with the same layers, settings of pythae's trainer, and a label."""
    settings: dict[str, Any] = {}
    peer_config = PeerConfig(input_dim=tuple(config.event_shape), latent_dim=config.latent_dim, reconstruction_loss="bce")
    if name == "default":
        peer = PeerVAE(peer_config)
        layers: dict[str, Any] = {"hidden_sizes": [PEER_HIDDEN], "hidden_act": "relu"}
        label = f"its default network ({config.event_size}-{PEER_HIDDEN}-{config.latent_dim})"
    else:
        peer = PeerVAE(peer_config, SameEncoder(config), SameDecoder(config))
        settings["learning_rate"] = recipe.training["learning_rate"]
        settings |= {"scheduler_cls": "CosineAnnealingLR", "scheduler_params": {"T_max": epochs}}
        layers = {"hidden_sizes": config.hidden_sizes, "hidden_act": config.hidden_act}
        sizes = "-".join(map(str, (config.event_size, *config.hidden_sizes, config.latent_dim)))
        label = f"the layers of this model ({sizes}, {config.hidden_act.upper()})"
    own = VAEModel(VAEConfig(event_shape=config.event_shape, latent_dim=config.latent_dim, **layers))
    return peer, own, settings, f"pythae {peer_version()} VAE, {label}"


def command_of(arguments: argparse.Namespace, variant: str) -> str:
    """The command for one variant, without this machine's folders."""
    local = arguments.data is not None and Path(arguments.data).exists()
    parts = ["python", "scripts/benchmark_vae.py", "likelihood", f"scripts/recipes/{Path(arguments.recipe).name}"]
    parts += map(shlex.quote, arguments.overrides)
    parts += ["--data", "FOLDER" if local else shlex.quote(arguments.data)] if arguments.data else []
    parts += ["--variants", variant]
    for name, default in DEFAULTS.items():
        if getattr(arguments, name) != default:
            parts += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return " ".join(parts)


def write_row(file: Path, row: dict[str, Any]) -> None:
    """Put a row in place of an older one with the same label."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows = [old for old in rows if old["label"] != row["label"]] + [row]
    file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def likelihood(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    overrides = arguments.overrides + ([f"data.name={arguments.data}"] if arguments.data else [])
    try:
        recipe = recipes.load_recipe(arguments.recipe, overrides)
        data = recipes.load_data_of(recipe)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    reference, processor = recipes.build(recipe, data)
    config = reference.config
    kind = [getattr(config, name, None) for name in ("model_type", "network", "decoder", "binarization")]
    if kind != ["vae", "mlp", "bernoulli", "stochastic"]:
        sys.exit("error: the recipe must be of a VAE with network: mlp, decoder: bernoulli and binarization: stochastic")
    reference.eval()
    images = {split: recipes.prepare_split(data, split, recipe, processor).columns["pixel_values"] for split in data}
    images["test"] = images["test"][: arguments.max_examples]
    binary = {split: reference.binarize(images[split]) for split in ("validation", "test")}
    epochs = arguments.epochs or int(recipe.training["num_train_epochs"])
    seed = recipe.training.get("seed", 0)
    batch = recipe.training["per_device_train_batch_size"]
    into = Path(arguments.into)
    into.mkdir(parents=True, exist_ok=True)

    def noise_of(part: slice) -> Tensor:
        return reference.noise_of(images["test"][part], arguments.num_samples)

    for variant in arguments.variants:
        torch.manual_seed(seed)
        peer, own, settings, label = build_variant(variant, recipe, config, epochs)
        print(f"{label}: {sum(p.numel() for p in peer.parameters()):,} parameters, {epochs} epochs", flush=True)
        history = TrainHistoryCallback()
        with tempfile.TemporaryDirectory() as temporary:
            trainer = BaseTrainer(
                peer,
                Binarized(images["train"]),
                BaseDataset(binary["validation"], torch.ones(len(binary["validation"]))),
                training_config=BaseTrainerConfig(
                    output_dir=arguments.keep or temporary,
                    num_epochs=epochs,
                    per_device_train_batch_size=batch,
                    per_device_eval_batch_size=recipe.training.get("per_device_eval_batch_size", batch),
                    no_cuda=True,
                    **settings,
                ),
                callbacks=[history],
            )
            keep_freed_memory()
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
        curve = history.history["eval_loss"]
        best = curve.index(min(curve)) + 1
        model = trainer._best_model.eval()
        start = time.perf_counter()
        nll = negative_log_likelihood(model, binary["test"], noise_of)
        scored = time.perf_counter() - start
        with torch.no_grad():
            bound = model(DatasetOutput(data=binary["test"])).loss.item()
        mean, error = nll.mean().item(), nll.std().item() / math.sqrt(len(nll))
        rate = trainer.optimizer.defaults["lr"]
        schedule = "with a cosine to 0" if trainer.scheduler else "constant"
        source = (
            f"`{command_of(arguments, variant)}`: pythae's own trainer, Adam, learning rate {rate:g} {schedule}, {epochs} "
            f"epochs of {len(images['train']):,} images whose pixels are drawn anew every time, batch size {batch}, kept at "
            f"epoch {best}, where the loss of {len(binary['validation']):,} validation images was least; scored with "
            f"{arguments.num_samples} importance samples on the same binarised {len(nll):,} test images as this model; "
            f"{seconds:,.0f} s of training on {hardware()}, {arguments.threads} thread(s)."
        )
        print(f"  {len(nll):,} test images: -log p(x) <= {mean:.3f} nats (standard error {error:.3f}); one sample {bound:.2f}")
        print(f"  trained in {seconds:,.1f} s ({seconds / epochs:.2f} an epoch), scored in {scored:,.1f} s; validation loss:")
        shown = sorted({*range(0, epochs, max(1, epochs // 10)), best - 1, epochs - 1})
        print("    " + ", ".join(f"{curve[epoch]:.2f} ({epoch + 1})" for epoch in shown))
        check_likelihood(model, own, images["test"], binary["test"], nll, arguments.num_samples)
        write_row(into / "peer.json", {"label": label, "nll": mean, "source": source})
        print(f"  {source}\n  written to {into / 'peer.json'}", flush=True)
    print(f"pythae {peer_version()}, {versions()}")


# --- the command line ---

# what a command states only where it is something else
DEFAULTS = {"epochs": None, "num_samples": 500, "max_examples": None, "threads": 1}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="speed | likelihood")

    part = commands.add_parser("speed", help="samples/s of training")
    part.add_argument("--threads", type=int, default=1)
    part.add_argument("--batch", type=int, default=100)
    part.add_argument("--latent-dim", type=int, default=16)
    part.add_argument("--rounds", type=int, default=9, help="the median over these is printed")
    part.add_argument("--steps", type=int, default=100, help="of every contestant in every round")
    part.add_argument("--json", metavar="FILE", help="also write everything, every round too, to this file")
    part.set_defaults(function=speed)

    part = commands.add_parser("likelihood", help="-log p(x) of test images")
    part.add_argument("recipe", help="a YAML file of scripts/recipes/")
    part.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="right after the recipe: values in place of its"
    )
    part.add_argument("--data", help="data set in place of the recipe's: a name, a Hub id or a local folder")
    part.add_argument("--into", required=True, metavar="FOLDER", help="trained folder that peer.json is written to")
    part.add_argument("--variants", nargs="+", choices=("default", "same-layers"), default=("default", "same-layers"))
    part.add_argument("--epochs", type=int, help="default: the recipe's; fewer for a quick look, never for a card")
    part.add_argument("--num-samples", type=int, default=DEFAULTS["num_samples"], help="importance samples a test image")
    part.add_argument("--max-examples", type=int, help="score only the first so many test images; for a quick look")
    part.add_argument("--threads", type=int, default=DEFAULTS["threads"])
    part.add_argument("--keep", metavar="FOLDER", help="keep what pythae's trainer saves in this folder")
    part.set_defaults(function=likelihood)

    arguments = parser.parse_args()
    for name in ("threads", "batch", "latent_dim", "rounds", "steps", "epochs", "num_samples", "max_examples"):
        if (value := getattr(arguments, name, None)) is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value} must be positive")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
