"""Invertible residual networks: density, inverse and classification.

Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen 2019, https://arxiv.org/abs/1811.00995; Chen, Behrmann, Duvenaud, Jacobsen
2019 (Residual Flows), https://arxiv.org/abs/1906.02735; the reading in https://kexue.fm/archives/6482.

A block ``y = x + g(x)`` with Lip(g) <= c < 1 has an inverse (Banach's fixed point of ``x = y - g(x)``) and the
log-determinant ``log det(I + J) = sum_k (-1)^(k+1) / k tr(J^k)``. Layers keep the slopes of their activations, so products
with J are written out as the network run backwards; autograd differentiates them once, never twice.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput, logging

from .configuration_invertible_resnet import InvertibleResNetConfig
from .fixed_point import rms, solve_block
from .lipschitz import LIPSCHITZ_ACTIVATIONS, LipschitzConv2d, LipschitzLayer, LipschitzLinear, channels_last
from .log_determinant import ALL, exact_log_det, roulette_log_det, truncated_log_det
from .modeling_flow import FlowPreTrainedModel, exact_unless_training, key_of_each_example, random_tensor, uniform_of_keys

if TYPE_CHECKING:
    # Needed by a saved folder, so they are named here: save_pretrained copies the files a model file imports.
    from .image_processing_flow import FlowImageProcessor  # noqa: F401
    from .pipeline_flow import UnconditionalImageGenerationPipeline  # noqa: F401

logger = logging.get_logger(__name__)

# In evaluation the series runs until what is left is certified to be below this, nats per block.
EVALUATION_TOLERANCE = 1e-3
EVALUATION_TERMS = 500


@dataclass
class InverseInfo(ModelOutput):
    """How an inverse was reached.

    Args:
        evaluations: ``(batch, blocks)`` int64, evaluations of g, in the order of the blocks in encoding.
        converged: ``(batch,)`` bool, whether every block met its tolerance or the rounding of its dtype.
        residual: ``(batch,)``, largest Euclidean norm of ``y - x - g(x)`` over the blocks, computed in float64.
        certified_error: ``(batch,)`` float64, bound on the Euclidean distance of x from the exact inverse, from the residuals
            and the certified Lipschitz constants. It grows by 1 / (1 - c) with every block: pessimistic in deep models.
    """

    evaluations: Tensor | None = None
    converged: Tensor | None = None
    residual: Tensor | None = None
    certified_error: Tensor | None = None


@dataclass
class LogDetInfo(ModelOutput):
    """How a log-determinant was computed.

    Args:
        truncation_error: ``(batch,)`` nats, bound on what the terms left out would add (for the probes that were drawn; with
            an exact trace or method, for the log-determinant itself).
        standard_error: ``(batch,)`` nats, over the probes; zero for exact traces, None with a single probe.
        num_terms: most terms that a block took; 0 for the exact method.
    """

    truncation_error: Tensor | None = None
    standard_error: Tensor | None = None
    num_terms: int | None = None


class ActNorm(nn.Module):
    """``y = (x + shift) * exp(log_scale)``, per channel of a map or per dimension of a vector."""

    def __init__(self, size: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(size))
        self.log_scale = nn.Parameter(torch.zeros(size))

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        return self.shift.to(x.dtype).view(shape), self.log_scale.to(x.dtype).view(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log |det| (scalar, nats)."""
        shift, log_scale = self._affine(x)
        return (x + shift) * log_scale.exp(), log_scale.sum() * math.prod(x.shape[2:])

    def inverse(self, y: Tensor) -> Tensor:
        shift, log_scale = self._affine(y)
        return y * (-log_scale).exp() - shift

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Bring x to mean 0 and standard deviation 1; a channel that is constant keeps its scale."""
        axes = [0, *range(2, x.ndim)]
        self.shift.copy_(-x.mean(axes))
        # Blown up to spread 1, the first traces of life in channels of zeros would drown all others.
        std = x.std(axes)
        self.log_scale.copy_(-torch.where(std > 1e-4, std, 1.0).log())


class Squeeze(nn.Module):
    """Space to depth, ``(C, H, W) -> (4 C, H / 2, W / 2)``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)

    def inverse(self, y: Tensor) -> Tensor:
        return F.pixel_shuffle(y, 2)


class Split(nn.Module):
    """Half of the channels leave; a marker, because where they go is the model's business."""


class Flatten(nn.Module):
    """A map to a vector, before dense blocks."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def inverse(self, y: Tensor) -> Tensor:
        return y.unflatten(1, self.shape)


class ResidualBlock(nn.Module):
    """g of one block: linear maps with bounded norms, activations with bounded slopes before each but, maybe, the first."""

    def __init__(self, config: InvertibleResNetConfig, shape: tuple[int, ...], starts_with_activation: bool):
        super().__init__()
        coeff = config.lipschitz_coeff
        if len(shape) == 1:
            sizes = [shape[0], *[config.hidden_size] * config.num_hidden_layers, shape[0]]
            if config.block_type == "conv":
                sizes[1:-1] = [config.dense_hidden_size] * 2
        else:
            sizes = [shape[0], *[config.hidden_size] * (len(config.kernel_sizes) - 1), shape[0]]
        count = len(sizes) - 1
        per_layer = coeff ** (1 / count) if coeff is not None and config.coeff_scope == "block" else coeff
        # Lip(g) <= lipschitz; None without a bound
        self.lipschitz = None if coeff is None else per_layer**count
        layers: list[LipschitzLayer] = []
        for layer in range(count):
            if len(shape) == 1:
                layers.append(LipschitzLinear(sizes[layer], sizes[layer + 1], per_layer))
            else:
                layers.append(
                    LipschitzConv2d(sizes[layer], sizes[layer + 1], config.kernel_sizes[layer], shape[1:], per_layer)
                )
        self.layers = nn.ModuleList(layers)
        self.activation = LIPSCHITZ_ACTIVATIONS[config.hidden_act]
        self.starts_with_activation = starts_with_activation

    def scaled_weights(self, iterations: int | None, detach_sigma: bool) -> tuple[list[Tensor], Tensor]:
        """The weights that g computes with, and a bound on its Lipschitz constant (scalar)."""
        weights, norms = zip(*(layer.scaled_weight(iterations, detach_sigma) for layer in self.layers), strict=True)
        return list(weights), torch.stack(norms).prod()

    def forward(self, x: Tensor, weights: list[Tensor], wants_slopes: bool = True) -> tuple[Tensor, list[Tensor | None]]:
        """g(x), and the slopes of the activations before each layer, for `vjp` (None where there is no activation)."""
        slopes: list[Tensor | None] = []
        if x.ndim == 4:
            x = channels_last(x)
        for index, (layer, weight) in enumerate(zip(self.layers, weights, strict=True)):
            slope = None
            if index or self.starts_with_activation:
                x, slope = self.activation(x, wants_slopes)
            slopes.append(slope)
            x = layer.affine(x, weight)
        return x, slopes

    def width(self, size: int) -> int:
        """Most numbers that an evaluation holds for one example of ``size`` dimensions between two layers."""
        places = size // self.layers[0].weight.shape[1]
        return places * max(max(layer.weight.shape[:2]) for layer in self.layers)

    def vjp(self, v: Tensor, weights: list[Tensor], slopes: list[Tensor | None], rows: slice = ALL) -> Tensor:
        """``v J`` for ``(probes, batch, *shape)``: the network run backwards.

        A batch axis of 1 in v stands for the same probes in every example of ``rows``.
        """
        for layer, weight, slope in zip(reversed(self.layers), reversed(weights), reversed(slopes), strict=True):
            if isinstance(layer, LipschitzLinear):
                v = layer.adjoint(v, weight)
            else:
                v = layer.adjoint(v.flatten(0, 1), weight).unflatten(0, v.shape[:2])
            if slope is not None:
                v = v * slope[rows]
        return v


@dataclass
class LogDetPlan:
    """How the log-determinants of one pass are computed, see [`InvertibleResNetModel.log_det`].

    Args:
        keys: ``(batch, 1)`` int64, where probes are a fixed function of each example.
        repeat: make a second, independent estimate, to measure the variance.
    """

    config: InvertibleResNetConfig
    training: bool
    method: str
    num_terms: int
    tolerance: float | None
    exact_trace: bool = False
    generator: torch.Generator | None = None
    keys: Tensor | None = None
    repeat: bool = False

    def __post_init__(self):
        self.num_probes = self.config.num_trace_samples

    def probes(self, like: Tensor, place: int) -> Tensor:
        """``(probes, batch, *shape)`` of mean 0 and unit covariance, or all unit vectors, for block number ``place``."""
        size = like[0].numel()
        if self.exact_trace:
            return (
                torch.eye(size, dtype=like.dtype, device=like.device).view(size, 1, *like.shape[1:]).expand(size, *like.shape)
            )
        shape = (self.num_probes, *like.shape)
        if self.keys is None and self.config.trace_distribution == "normal":
            return random_tensor("normal_", shape, like, self.generator)
        if self.keys is None:
            uniform = random_tensor("uniform_", shape, like, self.generator)
        else:
            seeds = [1 + place * self.num_probes + probe for probe in range(self.num_probes)]
            uniform = torch.stack([uniform_of_keys(self.keys, size, like.dtype, seed) for seed in seeds]).view(shape)
        return torch.where(uniform < 0.5, -1.0, 1.0).to(like.dtype)


class LogDetSum:
    """Adds up the log-determinants of a network's steps, ``(batch,)`` nats, and what is known of their errors."""

    def __init__(self, plan: LogDetPlan, start: Tensor):
        self.plan = plan
        self.total = start
        self.difference = torch.zeros_like(start)
        self.truncation_error = torch.zeros_like(start)
        self.variance: Tensor | None = torch.zeros_like(start)
        self.num_terms = 0
        self.num_blocks = 0

    def add(self, log_det: Tensor) -> None:
        self.total = self.total + log_det

    def add_block(
        self, block: ResidualBlock, x: Tensor, weights: list[Tensor], bound: Tensor, slopes: list[Tensor | None]
    ) -> None:
        """log det(I + J) of g's Jacobian J at x; ``bound`` is g's Lipschitz constant, `slopes` come from g's forward."""
        value = self._estimate(block, x, weights, bound, slopes)
        self.total = self.total + value
        if self.plan.repeat:
            with torch.no_grad():
                self.difference += value.detach() - self._estimate(block, x, weights, bound, slopes)
        self.num_blocks += 1

    def _estimate(
        self, block: ResidualBlock, x: Tensor, weights: list[Tensor], bound: Tensor, slopes: list[Tensor | None]
    ) -> Tensor:
        plan, config = self.plan, self.plan.config
        # once in the dtype of the products, where autocast would lower it in each of them
        lowered = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if lowered else x.dtype
        fixed_weights = [weight.detach().to(dtype) for weight in weights]
        fixed_slopes = [None if slope is None else slope.detach() for slope in slopes]

        def vjp(v: Tensor, rows: slice) -> Tensor:
            if torch.is_grad_enabled():
                return block.vjp(v, weights, slopes, rows)
            return block.vjp(v, fixed_weights, fixed_slopes, rows)

        if plan.method == "exact":
            return exact_log_det(vjp, x, block.width(x[0].numel()))
        probes = plan.probes(x, self.num_blocks).to(dtype)
        if probes.ndim == 5:
            probes = channels_last(probes.flatten(0, 1)).unflatten(0, probes.shape[:2])
        if plan.method == "roulette":
            self.variance = None
            stop = config.roulette_stop_probability or (1 - block.lipschitz**2) / 2
            return roulette_log_det(
                vjp, probes, config.num_exact_terms, stop, block.lipschitz, plan.generator, config.neumann_gradient
            )
        # In training the configured bound serves: reading the present one would wait for the device.
        lipschitz = block.lipschitz if plan.training else min(bound.item(), block.lipschitz)
        values, error, terms = truncated_log_det(
            vjp, probes, plan.num_terms, lipschitz, plan.tolerance, plan.exact_trace, config.neumann_gradient
        )
        self.truncation_error = self.truncation_error + error
        self.num_terms = max(self.num_terms, terms)
        if plan.exact_trace:
            return values.sum(0)
        if len(values) == 1:
            self.variance = None
        if self.variance is not None:
            self.variance = self.variance + values.detach().var(0) / len(values)
        return values.mean(0)

    def info(self) -> LogDetInfo:
        return LogDetInfo(
            truncation_error=self.truncation_error.detach(),
            standard_error=None if self.variance is None else self.variance.sqrt(),
            num_terms=self.num_terms,
        )


class InvertibleResNetModel(FlowPreTrainedModel):
    r"""Invertible ResNet with a density over images or vectors.

    In training, `forward` moves the power iterations and takes the configured estimator of the log-determinant. ``eval()``
    calls `finalize`, after which the Lipschitz bounds are certified. In evaluation the log-determinant is exact up to
    ``config.exact_log_det_size`` dimensions, else an estimate with a fixed probe per example; see `log_det`.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import InvertibleResNetConfig, InvertibleResNetModel
    >>> config = InvertibleResNetConfig(event_shape=(2,), num_levels=None, dequantization="none", num_blocks=[4])
    >>> model = InvertibleResNetModel(config).eval()
    >>> x = torch.randn(16, 2)
    >>> latents, log_det = model.encode(x)
    >>> decoded, info = model.inverse(latents, return_info=True)
    >>> bool((decoded - x).abs().max() < 1e-5), bool(info.converged.all())
    (True, True)
    >>> bool(model.lipschitz_certificate().max() <= 0.9 + 1e-6)
    True

    ```
    """

    config_class = InvertibleResNetConfig
    _auto_class = "AutoModel"
    # Bounds, scales and the prior decide over exactness and are small.
    _keep_in_fp32_modules_strict = ["right", "slack", "norm", "shift", "log_scale", "prior", "log_det_variance"]

    def __init__(self, config: InvertibleResNetConfig):
        super().__init__(config)
        self.steps = nn.ModuleList(self._build_steps(config))
        # running mean of the variance of the training estimator, nats^2 per example
        self.register_buffer("log_det_variance", torch.zeros(()))
        self._stale = False
        self.post_init()

    @staticmethod
    def _build_steps(config: InvertibleResNetConfig) -> list[nn.Module]:
        conv = config.block_type == "conv"
        shape = config.padded_shape if conv else (config.latent_size,)
        steps: list[nn.Module] = []

        def add_blocks(count: int) -> None:
            for _ in range(count):
                if config.use_actnorm:
                    steps.append(ActNorm(shape[0]))
                first = not any(isinstance(step, ResidualBlock) for step in steps)
                steps.append(ResidualBlock(config, shape, config.preactivation and not first))

        for scale, count in enumerate(config.num_blocks):
            if config.squeezes(scale):
                steps.append(Squeeze())
                shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
            add_blocks(count)
            if conv and config.split and scale + 1 < len(config.num_blocks):
                steps.append(Split())
                shape = (shape[0] // 2, *shape[1:])
        if conv and config.num_dense_blocks:
            steps.append(Flatten(shape))
            shape = (math.prod(shape),)
            add_blocks(config.num_dense_blocks)
        if config.use_actnorm:
            steps.append(ActNorm(shape[0]))
        return steps

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The residual blocks in the order of encoding."""
        return [step for step in self.steps if isinstance(step, ResidualBlock)]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LipschitzLayer):
            module.reset()
        elif isinstance(module, ActNorm):
            init.zeros_(module.shift)
            init.zeros_(module.log_scale)
        elif isinstance(module, InvertibleResNetModel):
            init.zeros_(module.log_det_variance)

    @property
    def _needs_data(self) -> bool:
        return self.config.use_actnorm

    # --- Lipschitz control ---

    @torch.no_grad()
    def finalize(self) -> None:
        """Converge all power iterations and certify the norms; a saved or evaluated model computes with these.

        ``eval()`` after training steps and ``save_pretrained`` call it. Call it by hand after changing weights in evaluation.
        """
        for block in self.blocks:
            for layer in block.layers:
                layer.finalize()
        self._stale = False

    def train(self, mode: bool = True) -> InvertibleResNetModel:
        super().train(mode)
        # Weights that were rounded to half precision are others than those that the checkpoint's norms belong to.
        rounded = torch.finfo(self.dtype).bits < 32
        if not mode and (self._stale or rounded) and self.device.type != "meta":
            self.finalize()
        return self

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        if kwargs.get("state_dict") is None:
            self.finalize()
        super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def lipschitz_certificate(self) -> Tensor:
        """Certified upper bounds on the Lipschitz constants of g, ``(blocks,)`` float64.

        Products of the norms of the weights in use, each bounded anew: the largest singular value of a matrix, of a 1x1
        convolution or of a convolution's dense matrix on a small map, the largest singular value of the kernel's Fourier
        transform on a large one; activations have slope at most 1.
        """
        if self.config.lipschitz_coeff is None:
            raise ValueError("lipschitz_coeff is None: this model's blocks have no bound to certify")
        bounds = []
        for block, (weights, _) in zip(self.blocks, self._scaled_weights(), strict=True):
            norms = [layer.norm_bound(weight) for layer, weight in zip(block.layers, weights, strict=True)]
            bounds.append(torch.stack(norms).prod())
        return torch.stack(bounds)

    def _scaled_weights(self) -> list[tuple[list[Tensor], Tensor]]:
        """What every block computes with; once per pass over the network, not once per evaluation of g."""
        iterations = None
        if self.training:  # weights move, so that the norms certified before are not theirs
            iterations = self.config.num_power_iterations if torch.is_grad_enabled() else 0
            self._stale = True
        return [block.scaled_weights(iterations, self.config.detach_sigma) for block in self.blocks]

    def _require(self, what: str) -> None:
        config = self.config
        if config.lipschitz_coeff is None:
            raise ValueError(f"lipschitz_coeff is None: without a bound there is no {what}; set lipschitz_coeff=0.9")
        if config.injective_padding and what == "density":
            raise ValueError(
                f"injective_padding={config.injective_padding}: the model's latents have {config.latent_size} dimensions, its "
                f"input {config.event_size}, so it has no density; transform(x) gives the latents"
            )

    # --- the way in and out ---

    def _enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data ``(batch, *event_shape)`` to the first step's input, with the log-determinant of the data transform."""
        config = self.config
        flat = self.flatten(x)
        log_det = flat.new_zeros(len(flat))
        if config.data_transform == "center":
            flat = flat - 0.5
        elif config.data_transform == "logit":
            low = config.logit_alpha + (1 - 2 * config.logit_alpha) * flat
            # 1 - low would lose the digits of a value near 1
            high = config.logit_alpha + (1 - 2 * config.logit_alpha) * (1 - flat)
            log_low, log_high = low.log(), high.log()
            flat = log_low - log_high
            log_det = (math.log(1 - 2 * config.logit_alpha) - log_low - log_high).sum(1)
        if config.block_type == "conv" or config.injective_padding:
            image = flat.view(-1, *config.event_shape)
            if config.injective_padding:
                image = F.pad(image, (0, 0, 0, 0, 0, config.injective_padding))
            return (image if config.block_type == "conv" else image.flatten(1)), log_det
        return flat, log_det

    def _leave(self, hidden: Tensor) -> Tensor:
        config = self.config
        x = hidden.view(-1, *config.padded_shape)[:, : config.event_shape[0]]
        if config.data_transform == "center":
            x = x + 0.5
        elif config.data_transform == "logit":
            x = (torch.sigmoid(x) - config.logit_alpha) / (1 - 2 * config.logit_alpha)
        return x.reshape(-1, *config.event_shape)

    def _run(self, hidden: Tensor, log_dets: LogDetSum | None = None) -> Tensor:
        """All steps, ``(batch, ...) -> (batch, D)``; ``log_dets`` is told of every step that changes volume."""
        parts = []
        for step, prepared in self._steps_with_weights():
            if isinstance(step, Split):
                left, hidden = hidden.chunk(2, dim=1)
                parts.append(left.flatten(1))
            elif isinstance(step, ResidualBlock):
                weights, bound = prepared
                value, slopes = step(hidden, weights, wants_slopes=log_dets is not None)
                if log_dets is not None:
                    log_dets.add_block(step, hidden, weights, bound, slopes)
                hidden = hidden + value.to(hidden.dtype)
            elif isinstance(step, ActNorm):
                hidden, log_det = step(hidden)
                if log_dets is not None:
                    log_dets.add(log_det)
            else:
                hidden = step(hidden)
        return torch.cat([*parts, hidden.flatten(1)], dim=1)

    def transform(self, x: Tensor) -> Tensor:
        """The map alone, ``(batch, *event_shape) -> latents (batch, D)``; without its log-determinant it is one pass."""
        with exact_unless_training(self.training, x.device):
            return self._run(self._enter(x)[0])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From data to latents.

        Args:
            x: ``(batch, *event_shape)``, continuous (see `dequantize`). The logit transform takes values in
                ``(-a, 1 + a)``, ``a = alpha / (1 - 2 alpha)``; others, which have no density, give NaN.

        Returns:
            latents ``(batch, D)`` and log |det df/dx| in nats, ``(batch,)``: by the training estimator in training (random,
            like dropout), else as `log_det` computes it by default.

        Raises:
            ValueError: the shape does not fit, or the configuration has no density (padding, no Lipschitz bound).
        """
        if self.training and not torch.compiler.is_compiling():
            self._warn_of_infinite_variance()
        latents, log_det, _ = self._encode(x, self._plan())
        return latents, log_det

    def log_det(
        self,
        x: Tensor,
        method: str | None = None,
        *,
        num_terms: int | None = None,
        tolerance: float | None = None,
        num_probes: int | None = None,
        exact_trace: bool = False,
        generator: torch.Generator | None = None,
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, LogDetInfo]:
        """log |det df/dx| in nats, ``(batch, *event_shape) -> (batch,)``.

        Args:
            x: continuous data.
            method: ``"exact"`` (dense Jacobian of each block), ``"truncated"`` (series and probes) or ``"roulette"``
                (unbiased). None is the configured one in training, and in evaluation ``"exact"`` up to
                ``config.exact_log_det_size`` dimensions, ``"truncated"`` above.
            num_terms: terms of the truncated series; by default as many as ``tolerance`` needs (at most 500).
            tolerance: certified bound in nats on what a block's terms left out would add; 1e-3 if ``num_terms`` is None.
            num_probes: probes per example; ``config.num_trace_samples`` by default.
            exact_trace: take the trace over all unit vectors: no noise, and the bound holds for the log-determinant.
            generator: where probes and stops are drawn from. Without one they are, in evaluation, a fixed function of
                each example (``"truncated"``) or seeded by 0 (``"roulette"``).
            return_info: also return a [`LogDetInfo`].

        Raises:
            ValueError: unknown method, no density, or an exact Jacobian that does not fit into memory (with its bytes).
        """
        plan = self._plan(method, num_terms, tolerance)
        plan.num_probes = num_probes or plan.num_probes
        plan.exact_trace, plan.generator = exact_trace, generator
        _, log_det, info = self._encode(x, plan)
        return (log_det, info) if return_info else log_det

    def _plan(self, method: str | None = None, num_terms: int | None = None, tolerance: float | None = None) -> LogDetPlan:
        """How log-determinants are computed, with every default filled in."""
        config = self.config
        if method is None:
            method = config.log_det_estimator if self.training else "auto"
            if method == "auto" and self.training:
                method = "exact" if config.latent_size <= 16 else "roulette"
            elif method == "auto":
                method = "exact" if config.latent_size <= config.exact_log_det_size else "truncated"
            if self.training and method == "truncated":
                num_terms = num_terms or config.num_series_terms
        if method not in ("exact", "truncated", "roulette"):
            raise ValueError(f"method={method!r} is not known; it must be 'exact', 'truncated' or 'roulette'")
        if num_terms is not None and num_terms < 1:
            raise ValueError(f"num_terms={num_terms} must be at least 1")
        if num_terms is None and tolerance is None:
            tolerance = EVALUATION_TOLERANCE
        return LogDetPlan(config, self.training, method, num_terms or EVALUATION_TERMS, tolerance)

    def _encode(self, x: Tensor, plan: LogDetPlan) -> tuple[Tensor, Tensor, LogDetInfo]:
        self._require("density")
        with exact_unless_training(self.training, x.device):
            hidden, log_det = self._enter(x)
            order = None
            if plan.method == "roulette":
                if plan.generator is None and not self.training:
                    plan.generator = torch.Generator().manual_seed(0)
                # see roulette_log_det: an example's number of terms must not depend on its place in the batch
                order = torch.randperm(len(hidden), generator=plan.generator).to(hidden.device)
                hidden, log_det = hidden[order], log_det[order]
            elif plan.method == "exact":
                self._check_memory(hidden)
            elif plan.generator is None and not self.training:
                plan.keys = key_of_each_example(self.flatten(x))
            if self.training and plan.method != "exact" and not torch.compiler.is_compiling():
                plan.repeat = torch.rand(()).item() < 1 / 16
            log_dets = LogDetSum(plan, log_det)
            latents = self._run(hidden, log_dets)
            log_det = log_dets.total
            if plan.repeat:
                variance = log_dets.difference.square().mean() / 2  # of two independent estimates
                self.log_det_variance.lerp_(variance.to(self.log_det_variance.dtype), 0.1)
            if order is not None:
                back = order.argsort()
                latents, log_det = latents[back], log_det[back]
        return latents, log_det, log_dets.info()

    def _warn_of_infinite_variance(self) -> None:
        stop = self.config.roulette_stop_probability
        if stop is None or self.config.lipschitz_coeff is None or self._plan().method != "roulette":
            return
        lipschitz = max(block.lipschitz for block in self.blocks)
        if lipschitz**2 >= 1 - stop:
            logger.warning_once(
                f"roulette_stop_probability={stop} is too large for blocks with Lipschitz constants up to {lipschitz:.3g}: "
                f"the variance of the log-determinant is finite only below 1 - c^2 = {1 - lipschitz**2:.3g}. None chooses "
                f"{(1 - lipschitz**2) / 2:.3g}."
            )

    def _check_memory(self, hidden: Tensor) -> None:
        """Refuse an exact log-determinant that would not fit, with the bytes that its first block needs."""
        if torch.compiler.is_compiling() or not self.blocks:
            return
        size, width = hidden[0].numel(), self.blocks[0].width(hidden[0].numel())
        examples = len(hidden) * 2 * len(self.blocks) if torch.is_grad_enabled() else 1
        needed = examples * size * (size + width) * hidden.element_size()
        if hidden.device.type == "cuda":
            available = torch.cuda.mem_get_info(hidden.device)[1]
        else:
            available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            raise ValueError(
                f"an exact log-determinant of {size} dimensions needs about {needed:,} bytes, and there are {available:,}; "
                'use method="truncated" or "roulette" (log_det_estimator in the configuration), or a smaller batch'
            )

    # --- inverse ---

    def decode(self, latents: Tensor) -> Tensor:
        """From latents ``(batch, D)`` to data ``(batch, *event_shape)``: `inverse` with the configured tolerance.

        Differentiable in latents and weights, by the implicit function theorem.
        """
        return self.inverse(latents)

    def inverse(
        self,
        latents: Tensor,
        tol: float | None = None,
        max_iter: int | None = None,
        *,
        anderson_depth: int | None = None,
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, InverseInfo]:
        """The inverse of `transform` by accelerated fixed-point iterations with a stop for each example.

        Args:
            latents: ``(batch, D)``.
            tol: root-mean-square error per dimension of each block's inverse, from the a-posteriori bound
                ``c / (1 - c) ||x_n - x_(n-1)||`` (Banach) with the certified c; ``config.inverse_tolerance`` by default.
            max_iter: most evaluations of g per block; ``config.inverse_max_iterations`` by default.
            anderson_depth: see the configuration; 0 is the plain iteration.
            return_info: also return an [`InverseInfo`], whose certificate costs one evaluation in float64 per block.

        Raises:
            ValueError: wrong shape, no Lipschitz bound, or a tolerance that the dtype cannot reach.
        """
        config = self.config
        self._require("inverse")
        if latents.ndim != 2 or latents.shape[1] != config.latent_size:
            raise ValueError(f"expected latents of shape (batch, {config.latent_size}), got {tuple(latents.shape)}")
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        eps = torch.finfo(latents.dtype).eps
        tol = tol if tol is not None else config.inverse_tolerance
        if tol is None:
            tol = 1e-13 if latents.dtype == torch.float64 else 1e-7
        if tol < eps / 2:
            raise ValueError(
                f"tol={tol:g} cannot be reached in {str(latents.dtype).removeprefix('torch.')}, whose rounding is {eps:.2g}; "
                f"use at least {eps / 2:.2g}, or model.double() and float64 latents"
            )
        max_iter = max_iter if max_iter is not None else config.inverse_max_iterations
        if max_iter < 1:
            raise ValueError(f"max_iter={max_iter} must be at least 1")
        depth = config.anderson_depth if anderson_depth is None else anderson_depth
        evaluations, met = [], []
        error = torch.zeros(len(latents), dtype=torch.float64, device=latents.device)
        largest = torch.zeros_like(error)
        split_sizes = self._split_sizes()
        *parts, hidden = latents.split(split_sizes, dim=1)
        with exact_unless_training(False, latents.device):
            hidden = hidden.view(-1, *self._last_shape())
            for step, prepared in reversed(self._steps_with_weights()):
                if isinstance(step, Split):
                    left = parts.pop().view_as(hidden)
                    hidden = torch.cat([left, hidden], dim=1)
                elif isinstance(step, ResidualBlock):
                    weights, bound = prepared
                    lipschitz = min(bound.item(), step.lipschitz)
                    target = hidden
                    hidden, count, done = self._invert_block(step, target, weights, lipschitz, tol, max_iter, depth)
                    evaluations.append(count)
                    met.append(done)
                    if return_info:
                        residual = _residual_in_double(step, hidden, target, weights)
                        largest = torch.maximum(largest, residual)
                        error = (error + residual) / (1 - lipschitz)
                elif isinstance(step, ActNorm):
                    hidden = step.inverse(hidden)
                    error = error * torch.exp(-step.log_scale.detach().double().amin())
                else:
                    hidden = step.inverse(hidden)
            x = self._leave(hidden)
        if config.data_transform == "logit":
            error = error / (4 * (1 - 2 * config.logit_alpha))
        # the arithmetic outside the blocks rounds, too
        rounding = 4 * len(self.steps) * eps * x.detach().double().flatten(1).norm(dim=1)
        converged = torch.stack(met).all(0) if met else torch.ones_like(error, dtype=torch.bool)
        if not converged.all():
            with torch.no_grad():
                worst = _residual_norm(self.transform(x), latents).max().item()
            logger.warning(
                f"the inverse of {int((~converged).sum())} of {len(converged)} examples did not converge to tol={tol:g} in "
                f"max_iter={max_iter} evaluations: transform(x) misses the latents by up to {worst:.3g} (Euclidean norm)"
            )
        if not return_info:
            return x
        order = torch.stack(evaluations[::-1], 1) if evaluations else torch.zeros(len(x), 0, dtype=torch.long)
        return x, InverseInfo(evaluations=order, converged=converged, residual=largest, certified_error=error + rounding)

    def _steps_with_weights(self) -> list[tuple[nn.Module, Any]]:
        prepared = iter(self._scaled_weights())
        return [(step, next(prepared) if isinstance(step, ResidualBlock) else None) for step in self.steps]

    def _split_sizes(self) -> list[int]:
        """Dimensions of the parts of the latents: those that left at each split, then the rest."""
        sizes, size = [], self.config.latent_size
        for step in self.steps:
            if isinstance(step, Split):
                size //= 2
                sizes.append(size)
        return [*sizes, size]

    def _last_shape(self) -> tuple[int, ...]:
        """Shape of one example after the last step."""
        if self.config.block_type == "mlp" or any(isinstance(step, Flatten) for step in self.steps):
            return (self._split_sizes()[-1],)
        return self.feature_shape

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the last scale's map."""
        shape = self.config.padded_shape
        for step in self.steps:
            if isinstance(step, Squeeze):
                shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
            elif isinstance(step, Split):
                shape = (shape[0] // 2, *shape[1:])
        return shape

    def _invert_block(
        self, block: ResidualBlock, y: Tensor, weights: list[Tensor], lipschitz: float, tol: float, max_iter: int, depth: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        fixed = [weight.detach() for weight in weights]
        x, count, met = solve_block(
            lambda x, rows: block(x, fixed, wants_slopes=False)[0], y.detach(), lipschitz, tol, max_iter, depth
        )
        if torch.is_grad_enabled():
            value, slopes = block(x, weights)
            residual = y - x - value
            if residual.requires_grad:
                slopes = [None if slope is None else slope.detach() for slope in slopes]

                def through_inverse(gradient: Tensor | None) -> Tensor | None:
                    if gradient is None:
                        return None

                    # dx = (I + J)^-1 dr: solve w (I + J) = gradient, a contraction like the block itself
                    def product(w: Tensor, rows: Tensor) -> Tensor:
                        chosen = [None if slope is None else slope[rows] for slope in slopes]
                        return block.vjp(w[None], fixed, chosen)[0]

                    # the tolerance is one for numbers of size 1: gradients of mean losses are far smaller
                    size = rms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny).view(-1, *[1] * (gradient.ndim - 1))
                    return size * solve_block(product, gradient / size, lipschitz, tol, max_iter, depth)[0]

                residual.register_hook(through_inverse)
                x = x + residual
        return x, count, met

    def _fit(self, x: Tensor) -> None:
        """Set every `ActNorm`, so that its output starts with mean 0 and standard deviation 1."""
        hidden, _ = self._enter(x)
        for step, prepared in self._steps_with_weights():
            if isinstance(step, ActNorm):
                step.fit(hidden)
                hidden = step(hidden)[0]
            elif isinstance(step, ResidualBlock):
                hidden = hidden + step(hidden, prepared[0], wants_slopes=False)[0]
            elif isinstance(step, Split):
                hidden = hidden.chunk(2, dim=1)[1]
            else:
                hidden = step(hidden)


def _residual_norm(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).flatten(1).norm(dim=1)


@torch.no_grad()
def _residual_in_double(block: ResidualBlock, x: Tensor, y: Tensor, weights: list[Tensor]) -> Tensor:
    """Euclidean norm of ``y - x - g(x)`` in float64, with what float64 itself rounds, ``(batch,)``."""
    x, y = x.detach().double(), y.detach().double()
    double = [weight.detach().double() for weight in weights]
    value, _ = block(x, double, wants_slopes=False)
    rounding = 8 * torch.finfo(torch.float64).eps * (x.flatten(1).norm(dim=1) + y.flatten(1).norm(dim=1))
    return _residual_norm(y, x + value) + rounding


class InvertibleResNetForImageClassification(PreTrainedModel):
    r"""Classifier on the last feature map of an invertible ResNet: ReLU, maybe a mean over places, one linear layer.

    ``flow`` is an [`InvertibleResNetModel`], so the features can be turned back into the image (`reconstruct`), and a density
    checkpoint can be the start of a classifier. ``config.density_weight`` adds the density's loss in nats per dimension.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import InvertibleResNetConfig, InvertibleResNetForImageClassification
    >>> config = InvertibleResNetConfig(event_shape=(1, 8, 8), num_levels=17, block_type="conv", num_blocks=[2], hidden_size=8,
    ...                                 dequantization="none", injective_padding=1, num_labels=10)
    >>> model = InvertibleResNetForImageClassification(config).eval()
    >>> images = torch.randint(17, (4, 1, 8, 8)) / 16
    >>> model(images).logits.shape
    torch.Size([4, 10])
    >>> bool((model.reconstruct(model.features(images)) - images).abs().max() < 1e-5)
    True

    ```
    """

    config_class = InvertibleResNetConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = []
    _auto_class = "AutoModelForImageClassification"
    _keep_in_fp32_modules_strict = InvertibleResNetModel._keep_in_fp32_modules_strict
    base_model_prefix = "flow"
    # The loss is a mean over the examples; transformers would otherwise divide it by a number of tokens.
    accepts_loss_kwargs = False

    def __init__(self, config: InvertibleResNetConfig):
        if config.split:
            raise ValueError("split=True takes channels away from the classifier's feature map; set split=False")
        super().__init__(config)
        self.flow = InvertibleResNetModel(config)
        if not config.density_weight:
            # outside the loss: processes that train together would wait for its gradient
            self.flow.prior.requires_grad_(False)
        shape = self.flow._last_shape()
        size = shape[0] if config.feature_pooling == "mean" else math.prod(shape)
        self.classifier = nn.Linear(size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:
            init.uniform_(module.weight, -(module.in_features**-0.5), module.in_features**-0.5)
            init.zeros_(module.bias)
        else:
            InvertibleResNetModel._init_weights(self.flow, module)

    def initialize(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> None:
        """See [`FlowPreTrainedModel.initialize`]."""
        self.flow.initialize(pixel_values, generator)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        if kwargs.get("state_dict") is None:
            self.flow.finalize()
        super().save_pretrained(save_directory, **kwargs)

    def features(self, pixel_values: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents ``(batch, D)`` of images as the image processor gives them."""
        return self.flow.transform(self.flow.dequantize(pixel_values, noise))

    def reconstruct(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Images ``(batch, *event_shape)`` from latents, see [`InvertibleResNetModel.inverse`]; added zeros are dropped."""
        return self.flow.inverse(features, **kwargs)

    def lipschitz_certificate(self) -> Tensor:
        """See [`InvertibleResNetModel.lipschitz_certificate`]."""
        return self.flow.lipschitz_certificate()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple:
        """Logits ``(batch, num_labels)``, and with labels ``(batch,)`` int64 the cross-entropy in nats.

        Args:
            pixel_values: ``(batch, *event_shape)``, as the image processor gives it.
            labels: class numbers.
            noise: dequantisation draws, see [`FlowPreTrainedModel.dequantize`].
            return_dict: an `ImageClassifierOutput`, or a tuple of its fields that are not None.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        self.flow._warn_if_not_initialized()
        x = self.flow.dequantize(pixel_values, noise)
        weight = self.config.density_weight
        if weight and labels is not None:
            latents, log_det = self.flow.encode(x)
        else:
            latents = self.flow.transform(x)
        features = F.relu(latents)
        if self.config.feature_pooling == "mean":
            channels = self.flow._last_shape()[0]
            features = features.view(len(features), channels, -1).mean(2)
        logits = self.classifier(features.to(self.classifier.weight.dtype))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits, labels)
            if weight:
                log_prob = self.flow.prior.log_prob(latents) + log_det
                loss = loss - weight * log_prob.mean() / self.config.event_size
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()


__all__ = ["InverseInfo", "InvertibleResNetForImageClassification", "InvertibleResNetModel", "LogDetInfo"]
