"""What every flow shares: priors, dequantisation, bits per dimension, sampling and the density interface.

A flow maps an example x to latents z by an invertible f and states the density exactly,

    log q(x) = log p(f(x)) + log |det df/dx|        in nats.

With K grey levels, ``x = (k + u) / K`` and ``u ~ U(0, 1)``, the discrete likelihood is bounded by
``log P(k) >= E_u log q(x) - D log K``, hence bits/dim = log2 K - log q(x) / (D ln 2).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .configuration_flow import FlowConfig

logger = logging.get_logger(__name__)


@dataclass
class FlowOutput(ModelOutput):
    """Output of a flow.

    Args:
        loss: scalar, mean negative log-density in nats. Negative values are right: it is a density, not a probability.
        log_prob: ``(batch,)``, log-density in nats of the dequantised input.
        latents: ``(batch, D)``.
        log_det: ``(batch,)``, log |det df/dx| in nats.
    """

    loss: Tensor | None = None
    log_prob: Tensor | None = None
    latents: Tensor | None = None
    log_det: Tensor | None = None


def random_tensor(draw: str, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers from a generator of any device, placed where ``like`` is."""
    device = like.device if generator is None else generator.device
    noise = torch.empty(shape, dtype=like.dtype, device=device)
    return getattr(noise, draw)(generator=generator).to(like.device)


def _hash_words(seed: int, rows: int, size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (rows, size), generator=generator).to(device)


def key_of_each_example(values: Tensor) -> Tensor:
    """One int64 for each example, ``(batch, 1)``, that its own values determine.

    Multiply-shift hashing (Dietzfelbinger et al. 1997), where int64 products wrap around.
    """
    flat = (values.flatten(1) * 2**24).round().long()
    return (flat * _hash_words(0, 3, flat.shape[1], flat.device)[0]).sum(1, keepdim=True)


def uniform_of_keys(keys: Tensor, size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """``(batch, size)`` uniform numbers in [0, 1), a fixed function of the keys; another one for every ``seed``."""
    _, factor, offset = _hash_words(seed, 3, size, keys.device)
    bits = (keys * (factor | 1) + offset) >> 40 & 0xFFFFFF
    return (bits / 2**24).to(dtype)


def _noise_of_each_example(values: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) that an example's own values determine: the same in every call, batch and process.

    One draw shared by all examples would leave its chance in their mean; here it averages out.
    """
    flat = values.flatten(1)
    return uniform_of_keys(key_of_each_example(values), flat.shape[1], values.dtype).view_as(values)


def exact_unless_training(training: bool, device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast lowers precision in training alone: encoding and decoding must round alike to undo each other."""
    return contextlib.nullcontext() if training else torch.autocast(device.type, enabled=False)


class NormalPrior(nn.Module):
    """Standard normal in D dimensions."""

    std = 1.0

    def __init__(self, event_size: int):
        super().__init__()
        self.event_size = event_size

    def log_prob(self, latents: Tensor) -> Tensor:
        """``(batch, D) -> (batch,)``, nats."""
        return -0.5 * (latents.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, num_samples: int, like: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        return temperature * random_tensor("normal_", (num_samples, self.event_size), like, generator)


class LogisticPrior(NormalPrior):
    """Standard logistic in D dimensions, the prior of the paper for images. Its score is bounded by 1."""

    std = math.pi / math.sqrt(3)

    def log_prob(self, latents: Tensor) -> Tensor:
        # log(1 + exp z) overflows, softplus does not
        return -(F.softplus(latents) + F.softplus(-latents)).sum(-1)

    def sample(self, num_samples: int, like: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        # The difference of two Gumbel variables is logistic: no uniform number close to 0 or 1 is cut off.
        numerator, denominator = (
            random_tensor("exponential_", (num_samples, self.event_size), like, generator).log() for _ in range(2)
        )
        return temperature * (numerator - denominator)


class DiagonalPrior(NormalPrior):
    """Normal with learned mean and standard deviation per dimension."""

    def __init__(self, event_size: int):
        super().__init__(event_size)
        self.mean = nn.Parameter(torch.zeros(event_size))
        self.log_std = nn.Parameter(torch.zeros(event_size))

    def log_prob(self, latents: Tensor) -> Tensor:
        return super().log_prob((latents - self.mean) * torch.exp(-self.log_std)) - self.log_std.sum()

    def sample(self, num_samples: int, like: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        return self.mean + self.log_std.exp() * super().sample(num_samples, like, temperature, generator)


PRIOR_CLASSES = {"normal": NormalPrior, "logistic": LogisticPrior, "diagonal": DiagonalPrior}


def nats_to_bits_per_dim(log_prob: Tensor | float, event_size: int, num_levels: int) -> Tensor | float:
    """Bits per dimension of K-level data whose density on ``[0, 1]^D`` is ``log_prob`` nats."""
    return math.log2(num_levels) - log_prob / (event_size * math.log(2))


class FlowDistribution(torch.distributions.Distribution):
    """A flow behind the interface of `torch.distributions`; `rsample` is differentiable in the weights."""

    arg_constraints = {}
    has_rsample = True

    def __init__(self, flow: FlowPreTrainedModel):
        super().__init__(event_shape=torch.Size(flow.config.event_shape), validate_args=False)
        self.flow = flow

    def log_prob(self, value: Tensor) -> Tensor:
        shape = value.shape[: max(value.ndim - len(self.event_shape), 0)]
        if value.shape[len(shape) :] != self.event_shape:
            raise ValueError(
                f"expected a value of shape (..., {', '.join(map(str, self.event_shape))}), got {tuple(value.shape)}"
            )
        return self.flow.log_prob(value.reshape(-1, *self.event_shape)).reshape(shape)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        like = self.flow.reference_tensor
        latents = self.flow.prior.sample(torch.Size(sample_shape).numel(), like, 1.0, None)
        return self.flow.decode(latents).reshape(*sample_shape, *self.event_shape)


class FlowPreTrainedModel(PreTrainedModel):
    """Density interface of the family. A flow adds `encode`, `decode` and, where it needs them, `initialize`."""

    config_class = FlowConfig
    base_model_prefix = "flow"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = []

    def __init__(self, config: FlowConfig):
        super().__init__(config)
        self.prior = PRIOR_CLASSES[config.prior](config.event_size)
        # Whether what depends on data was set. Kept by save and load, so that nothing is ever fitted twice.
        self.register_buffer("initialized", torch.tensor(not self._needs_data))
        self._input_checked = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DiagonalPrior):
            init.zeros_(module.mean)
            init.zeros_(module.log_std)
        elif isinstance(module, FlowPreTrainedModel):
            init.constant_(module.initialized, not module._needs_data)

    @property
    def _needs_data(self) -> bool:
        """Whether `initialize` has something to set."""
        return False

    # --- what a flow defines ---

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, *event_shape) -> (latents (batch, D), log_det (batch,))``."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode")

    def transform(self, x: Tensor) -> Tensor:
        """The map alone, ``(batch, *event_shape) -> latents (batch, D)``."""
        return self.encode(x)[0]

    def log_det(self, x: Tensor, method: str = "exact") -> Tensor:
        """log |det df/dx| in nats, ``(batch, *event_shape) -> (batch,)``, without an approximation."""
        if method != "exact":
            raise ValueError(f"method={method!r} is not known: {type(self).__name__} has an exact log-determinant")
        return self.encode(x)[1]

    def decode(self, latents: Tensor) -> Tensor:
        """``(batch, D) -> (batch, *event_shape)``, the inverse of `encode`."""
        raise NotImplementedError(f"{type(self).__name__} does not define decode")

    def _fit(self, x: Tensor) -> None:
        """Set what depends on data from continuous x, ``(batch, *event_shape)``; `initialize` calls it where `_needs_data`."""

    @torch.no_grad()
    def initialize(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> None:
        """Set what depends on data (scales, `ActNorm`) from one batch, once, before training.

        Args:
            pixel_values: ``(batch, *event_shape)``, a batch of training data as the image processor gives it.
            generator: where the dequantisation noise is drawn from.

        Raises:
            ValueError: wrong shape, or fewer than two examples.
        """
        if self._needs_data:
            if len(pixel_values) < 2:
                raise ValueError(f"initialize needs at least 2 examples for a standard deviation, got {len(pixel_values)}")
            if generator is None:
                generator = torch.Generator().manual_seed(0)
            self._fit(self.dequantize(pixel_values, generator=generator))
        self.initialized.fill_(True)

    # --- inputs ---

    @property
    def reference_tensor(self) -> Tensor:
        """An empty tensor with the device and the dtype of the latents (at least float32)."""
        parameter = next(self.parameters())
        return torch.empty(0, device=parameter.device, dtype=torch.promote_types(parameter.dtype, torch.float32))

    def flatten(self, x: Tensor) -> Tensor:
        """``(batch, *event_shape) -> (batch, D)`` in at least float32.

        Raises:
            ValueError: the shape does not fit the configuration.
        """
        expected = tuple(self.config.event_shape)
        if x.ndim != len(expected) + 1 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"expected an input of shape (batch, {', '.join(map(str, expected))}), got {tuple(x.shape)}")
        # Low precision and integers leave no room for an exact inverse; double stays double.
        return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        # Once in training (reading the extremes waits for the device), always in evaluation.
        if torch.compiler.is_compiling() or (self.training and self._input_checked):
            return
        low, high = pixel_values.detach().amin().item(), pixel_values.detach().amax().item()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("pixel_values hold NaN or infinite values")
        if low < 0 or high > 1:
            raise ValueError(
                f"pixel_values must lie in [0, 1], level k of K as k / (K - 1), but range from {low:g} to {high:g}; "
                "the model's image processor brings images into that range"
            )
        self._input_checked = True

    def dequantize(
        self, pixel_values: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """From grey levels to the continuous x whose density the model states.

        Args:
            pixel_values: ``(batch, *event_shape)``, level k of K as ``k / (K - 1)``, as the image processor gives it.
            noise: the uniform draws u, of the same shape; drawn if not given.
            generator: where they are drawn from. Without one, training draws from the global generator, and evaluation
                takes numbers that are a fixed function of each example, so that its output is one, too.

        Returns:
            ``(batch, *event_shape)``: ``(k + u) / K`` for ``"uniform"``, ``k / (K - 1) - noise_width * u`` in training
            for ``"blog"``, and the input itself otherwise.
        """
        config = self.config
        if config.dequantization == "none":
            return pixel_values
        self._check_pixel_values(pixel_values)
        if noise is not None and noise.shape != pixel_values.shape:
            raise ValueError(f"expected noise of shape {tuple(pixel_values.shape)}, got {tuple(noise.shape)}")
        if config.dequantization == "blog" and not self.training and noise is None:
            return pixel_values
        pixel_values = pixel_values.to(torch.promote_types(pixel_values.dtype, torch.float32))
        if noise is None:
            if generator is None and not self.training:
                noise = _noise_of_each_example(pixel_values)
            else:
                noise = random_tensor("uniform_", tuple(pixel_values.shape), pixel_values, generator)
        if config.dequantization == "blog":
            return pixel_values - config.noise_width * noise
        return (pixel_values * (config.num_levels - 1) + noise) / config.num_levels

    def quantize(self, x: Tensor) -> Tensor:
        """Inverse of `dequantize`: continuous x to the grid ``k / (K - 1)``, values outside [0, 1] to its ends."""
        levels = self.config.num_levels
        if levels is None:
            raise ValueError("num_levels is None: the model's data have no grid to quantise to")
        return (x * levels).floor().clamp(0, levels - 1) / (levels - 1)

    # --- the density interface ---

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
    ) -> FlowOutput | tuple:
        """Log-density of a batch of images and the loss, its negative mean in nats.

        Args:
            pixel_values: ``(batch, *event_shape)``, as the image processor gives it; see `dequantize`.
            noise: the dequantisation draws, of the same shape, if the caller wants to state them.
            return_loss: whether to compute the loss.
            return_dict: a [`FlowOutput`], or a tuple of its fields that are not None.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        self._warn_if_not_initialized()
        latents, log_det = self.encode(self.dequantize(pixel_values, noise))
        log_prob = self.prior.log_prob(latents) + log_det
        output = FlowOutput(
            loss=-log_prob.mean() if return_loss else None, log_prob=log_prob, latents=latents, log_det=log_det
        )
        return output if return_dict else output.to_tuple()

    def _warn_if_not_initialized(self) -> None:
        if self.training and not self._input_checked and not torch.compiler.is_compiling() and not self.initialized:
            logger.warning_once(
                f"{type(self).__name__} is trained before initialize(pixel_values) was called with a batch of training data: "
                "what depends on data keeps its neutral start, and training is slower for it."
            )

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density in nats of continuous x, ``(batch, *event_shape) -> (batch,)``.

        For grey levels see `dequantize` and `bits_per_dim`.
        """
        latents, log_det = self.encode(x)
        return self.prior.log_prob(latents) + log_det

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        return_log_prob: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw examples, ``(num_samples, *event_shape)``, continuous and not clipped.

        Args:
            num_samples: how many.
            temperature: factor on the latents. For a normal prior this is the prior at that temperature squared; for a
                logistic one it is a narrower logistic, not the same law as ``p(z) ** (1 / T**2)``.
            generator: where the latents are drawn from.
            return_log_prob: also return the model's log-density of each sample in nats, ``(num_samples,)``.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1")
        if temperature < 0:
            raise ValueError(f"temperature={temperature} must not be negative")
        x = self.decode(self.prior.sample(num_samples, self.reference_tensor, temperature, generator))
        return (x, self.log_prob(x)) if return_log_prob else x

    @torch.no_grad()
    def bits_per_dim(
        self,
        pixel_values: Tensor,
        num_draws: int = 1,
        generator: torch.Generator | None = None,
        importance_weighted: bool = False,
    ) -> Tensor:
        """Upper bound on the bits per dimension of quantised images, ``(batch, *event_shape) -> (batch,)``.

        Args:
            pixel_values: grey levels as ``k / (K - 1)``.
            num_draws: dequantisation draws S per image.
            generator: where they are drawn from.
            importance_weighted: the log of the mean density over the draws in place of the mean of the log, a tighter
                bound (Burda et al. 2016, arXiv:1509.00519).

        Raises:
            ValueError: the configuration's dequantisation gives no bound on a discrete likelihood, or the values are
                not on the grid.
        """
        config = self.config
        if config.dequantization != "uniform":
            raise ValueError(
                f"dequantization={config.dequantization!r} gives no valid bound in bits per dimension: the noise does "
                "not fill one grey level. Use dequantization='uniform'."
            )
        if num_draws < 1:
            raise ValueError(f"num_draws={num_draws} must be at least 1")
        levels = pixel_values * (config.num_levels - 1)
        if not (levels - levels.round()).abs().max() <= 1e-3:  # so that NaN is refused too
            raise ValueError(f"pixel_values are not on the grid of {config.num_levels} levels, k / {config.num_levels - 1}")
        generator = generator or torch.Generator().manual_seed(0)
        log_probs = torch.stack([self.log_prob(self.dequantize(pixel_values, generator=generator)) for _ in range(num_draws)])
        if importance_weighted:
            log_prob = log_probs.logsumexp(0) - math.log(num_draws)
        else:
            log_prob = log_probs.mean(0)
        return nats_to_bits_per_dim(log_prob, config.event_size, config.num_levels)

    @torch.no_grad()
    def interpolate(self, x1: Tensor, x2: Tensor, steps: int) -> Tensor:
        """Straight lines in latent space between two batches, ends included: ``(batch, steps, *event_shape)``."""
        if steps < 2:
            raise ValueError(f"steps={steps} must be at least 2: both ends are part of the path")
        if x1.shape != x2.shape:
            raise ValueError(f"x1 and x2 must have one shape, got {tuple(x1.shape)} and {tuple(x2.shape)}")
        start, end = self.transform(x1), self.transform(x2)
        weights = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None]
        path = torch.lerp(start[:, None], end[:, None], weights)
        return self.decode(path.flatten(0, 1)).unflatten(0, (len(x1), steps))

    def inpaint(self, x: Tensor, mask: Tensor, num_steps: int = 300, generator: torch.Generator | None = None) -> Tensor:
        """Fill in hidden values by noisy gradient ascent on the log-density (Dinh et al. 2015, section 5.2).

        ``x_hidden <- x_hidden + a_i w (w d log q(x) / d x_hidden + noise)`` with ``a_i = 10 / (100 + i)`` and standard
        normal noise, from the flow's mode; visible values stay as they are, and the hidden ones stay in [0, 1]. The paper
        has w = 1; here w is the flow's width (`typical_width`), without which steps jump over the narrow peaks of a trained
        density, and never reach them from afar.

        Args:
            x: ``(batch, *event_shape)``, continuous; what stands at hidden places is not looked at.
            mask: boolean, broadcast to x; True where the value is visible.
            num_steps: steps of ascent.
            generator: where the noise is drawn from.
        """
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean, True where the value is visible, got {mask.dtype}")
        mask = mask.expand_as(x)
        with torch.no_grad():
            mode = self.decode(self.reference_tensor.new_zeros(1, self.config.event_size)).clamp(0, 1)
        filled = torch.where(mask, x, mode.to(x.dtype))
        for step in range(num_steps):
            with torch.enable_grad():
                filled.requires_grad_()
                latents, log_det = self.encode(filled)
                log_prob = self.prior.log_prob(latents) + log_det
                (gradient,) = torch.autograd.grad(log_prob.sum(), filled)
            width = self.typical_width(log_det.detach())
            noise = random_tensor("normal_", tuple(x.shape), x, generator)
            moved = (filled.detach() + 10 / (100 + step) * width * (width * gradient + noise)).clamp(0, 1)
            filled = torch.where(mask, x, moved)
        return filled

    def typical_width(self, log_det: Tensor) -> Tensor:
        """How far x may move until its density changes much, broadcast to ``(batch, *event_shape)``."""
        return torch.exp(-log_det / self.config.event_size).view(-1, *[1] * len(self.config.event_shape))

    def distribution(self) -> FlowDistribution:
        """This flow as a `torch.distributions.Distribution`."""
        return FlowDistribution(self)


__all__ = ["FlowOutput", "FlowPreTrainedModel", "nats_to_bits_per_dim"]
