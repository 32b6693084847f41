"""Densities whose partition function is learned, by telling data from noise.

Gutmann and Hyvärinen 2012, https://jmlr.org/papers/v13/gutmann12a.html; Su Jianlin 2018, https://kexue.fm/archives/5617;
conditional NCE: Ceylan and Gutmann 2018, arXiv:1806.03664; telescoping: Rhodes, Xu, Gutmann 2020, arXiv:2006.12204.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.utils import ModelOutput, logging

from .configuration_nce_density import WITH_OWN_NOISE, NCEDensityConfig
from .energies import NetworkEnergy, PolynomialEnergy, init_energy_weights
from .example_noise import keys_of_examples, uniform_of_examples
from .nce_loss import NCELoss, nce_logits
from .noise_distributions import NOISES, FlowNoise, NoiseDistribution, reset_noise

logger = logging.get_logger(__name__)

# Points whose energy is computed at a time where no gradient is needed.
POINTS_AT_A_TIME = 2**16
SAMPLERS = ("importance", "rejection", "langevin")


@dataclass
class NCEDensityOutput(ModelOutput):
    """Output of [`NCEDensityModel`].

    Args:
        loss: scalar; of noise contrastive estimation it is no negative log-likelihood.
        log_prob: ``(batch,)``, log-density in nats, as far as c is right.
        energy: ``(batch,)``, -G(x); where the model learns a ratio, that of the ratio.
        log_partition: scalar, c.
        noise_logits: log-odds, by the model, that noise is data, in the shape of the noise without the event's; not of
            ``full``.
    """

    loss: Tensor | None = None
    log_prob: Tensor | None = None
    energy: Tensor | None = None
    log_partition: Tensor | None = None
    noise_logits: Tensor | None = None


@dataclass
class Normalization(ModelOutput):
    """The integral of exp(log_prob), which is 1 where c is right.

    Args:
        integral: the estimate.
        stderr: its standard error; 0 where a grid was used.
        log_integral: its logarithm in nats: what c lacks.
        effective_samples: how many independent samples of the model the noise samples are worth; None on a grid.
        method: ``"grid"``, ``"importance"`` or ``"annealed"``.
    """

    integral: float | None = None
    stderr: float | None = None
    log_integral: float | None = None
    effective_samples: float | None = None
    method: str | None = None


class NCEDensityModel(PreTrainedModel):
    r"""A density over vectors or images.

    Args:
        config: an [`NCEDensityConfig`].
        energy_function: G as a module, ``(batch, D) -> (batch,)``, with ``energy="custom"``. Telescoping takes one that gives
            ``(batch, num_bridges)``. It is given to ``from_pretrained``, too.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import NCEDensityConfig, NCEDensityModel
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = 3 + torch.randn(2000, 1, generator=generator)
    >>> model = NCEDensityModel(NCEDensityConfig(event_shape=(1,), energy="quadratic", noise_scale=2.0))
    >>> model.fit_noise(x)
    >>> optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")
    >>> noise = model.noise.sample(20000, generator)
    >>> def loss():
    ...     optimizer.zero_grad()
    ...     value = model(x, noise).loss
    ...     value.backward()
    ...     return value
    >>> _ = optimizer.step(loss)  # the stock Trainer does as well
    >>> abs(model.check_normalization().integral - 1) < 0.05
    True
    >>> model.sample(5, generator=generator).shape, model.score(x).shape
    (torch.Size([5, 1]), torch.Size([2000, 1]))

    ```
    """

    config_class = NCEDensityConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _auto_class = "AutoModel"
    _no_split_modules = []
    _can_compile_fullgraph = True
    accepts_loss_kwargs = False

    def __init__(self, config: NCEDensityConfig, energy_function: nn.Module | None = None):
        super().__init__(config)
        if (energy_function is None) == (config.energy == "custom"):
            raise ValueError(
                f"energy={config.energy!r}: an energy_function is what 'custom' takes, also in from_pretrained, and no other"
            )
        if config.energy == "custom":
            self.energy_function = energy_function
        elif config.energy in ("mlp", "conv"):
            self.energy_function = NetworkEnergy(config)
        else:
            self.energy_function = PolynomialEnergy(config.event_size, config.num_energies, config.energy == "quartic")
        self.noise = self._build_noise(config)
        shape = (config.num_bridges,) if config.loss_type == "telescoping" else ()
        start = torch.full(shape, config.log_partition_init / max(1, math.prod(shape)))
        if config.log_partition == "learned":
            self.log_partitions = nn.Parameter(start)
        else:
            self.register_buffer("log_partitions", start)
        self.loss = None if config.loss_type == "telescoping" else NCELoss(config.loss_type)
        self._data_checked = False
        names = [name for name, tensor in self.noise.named_buffers(recurse=False) if tensor.is_floating_point()]
        self._keep_in_fp32_modules_strict = ["log_partitions", *(f"noise.{name}" for name in names)]
        self.post_init()

    def _build_noise(self, config: NCEDensityConfig) -> NoiseDistribution:
        if config.noise == "flow":
            return FlowNoise(self._build_flow(config), config.event_shape)
        settings: dict[str, Any] = {"margin": config.noise_margin}
        if config.noise != "uniform":
            settings = {"covariance": config.noise_covariance, "scale": config.noise_scale}
        if config.noise == "gaussian_mixture":
            settings["num_components"] = config.num_components
        return NOISES[config.noise](config.event_shape, **settings)

    @staticmethod
    def _build_flow(config: NCEDensityConfig) -> PreTrainedModel:
        nested = config.noise_config
        if isinstance(nested, PreTrainedConfig):
            flow = AutoModel.from_config(nested)
        else:
            # As remote code: its files lie beside ours, in the folder or repository that is being loaded.
            settings = {key: value for key, value in nested.items() if key not in ("auto_map", "model_type")}
            config_class, model_class = (
                get_class_from_dynamic_module(
                    nested["auto_map"][name], config.name_or_path, revision=getattr(config, "_commit_hash", None)
                )
                for name in ("AutoConfig", "AutoModel")
            )
            config.noise_config = nested = config_class(**settings)
            flow = model_class._from_config(nested)
        nested.dtype = flow.dtype  # as loading sets it: a saved configuration comes back equal
        return flow

    @classmethod
    def from_noise_pretrained(cls, flow: str | Path | PreTrainedModel, **settings: Any) -> NCEDensityModel:
        """A new model whose noise is a trained flow.

        Args:
            flow: a loaded model, or a folder or Hub id of one.
            settings: fields of the configuration; the event and its quantisation are the flow's by default.
        """
        if not isinstance(flow, PreTrainedModel):
            flow = AutoModel.from_pretrained(flow)
        of_flow = {
            name: getattr(flow.config, name)
            for name in ("event_shape", "num_levels", "dequantization")
            if hasattr(flow.config, name)
        }
        model = cls(NCEDensityConfig(noise="flow", noise_config=flow.config.to_dict(), **(of_flow | settings)))
        model.noise.flow.load_state_dict(flow.state_dict())
        return model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As in transformers; the code of a flow goes along."""
        super().save_pretrained(save_directory, **kwargs)
        if isinstance(self.noise, FlowNoise) and kwargs.get("is_main_process", True):
            custom_object_save(self.noise.flow, save_directory)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if reset_noise(module) or init_energy_weights(module):
            return
        if module is self:
            init.constant_(self.log_partitions, self.config.log_partition_init / self.log_partitions.numel())

    # --- what depends on data ---

    @torch.no_grad()
    def initialize(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> None:
        """`fit_noise` to examples as the image processor gives them, once, before training."""
        self.fit_noise(self.dequantize(pixel_values, generator=generator or torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def fit_noise(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit the noise, and the scale of a network's inputs, to continuous data ``(examples, *event_shape)``.

        Raises:
            ValueError: NaN or infinite values, a wrong shape, too few examples, or noise that covers none of the data.
        """
        self.noise.fit(x, generator)
        if isinstance(self.energy_function, NetworkEnergy):
            self.energy_function.fit_inputs(self.noise.flatten(x))
        self.check_coverage(x)

    def check_coverage(self, x: Tensor) -> float:
        """The share of data where the noise has no density, with a warning if there is any.

        Raises:
            ValueError: it has none anywhere.
        """
        outside = self.noise.fraction_outside(x)
        message = (
            f"{100 * outside:.3g} % of the data lie outside the support of noise={self.config.noise!r}: the density there is "
            "not learned, and c is wrong by their share. Fit the noise to all of the data, or raise noise_margin."
        )
        if outside == 1:
            raise ValueError(message)
        if outside > 0:
            logger.warning(message)
        return outside

    def dequantize(
        self, pixel_values: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """From grey levels to the continuous x whose density the model states: ``(k + u) / K`` for ``k / (K - 1)``.

        Args:
            pixel_values: ``(batch, *event_shape)``.
            noise: the uniform draws u, of the same shape; drawn if not given.
            generator: where they are drawn from. Without one, training draws from the global generator, and evaluation takes
                numbers that are a fixed function of each example.
        """
        self._check_data(pixel_values)
        levels = self.config.num_levels
        if levels is None:
            return pixel_values
        pixel_values = pixel_values.to(torch.promote_types(pixel_values.dtype, torch.float32))
        if noise is None and generator is None and not self.training:
            noise = uniform_of_examples(keys_of_examples(pixel_values), tuple(pixel_values.shape[1:]))
        elif noise is None:
            device = pixel_values.device if generator is None else generator.device
            noise = torch.rand(pixel_values.shape, generator=generator, device=device).to(pixel_values.device)
        return (pixel_values * (levels - 1) + noise) / levels

    def _check_data(self, pixel_values: Tensor) -> None:
        expected = tuple(self.config.event_shape)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"pixel_values must be (batch, {', '.join(map(str, expected))}), got {tuple(pixel_values.shape)}")
        # once in training: a look at values waits for the device, and would break a compiled graph
        if torch.compiler.is_compiling() or (self.training and self._data_checked) or not pixel_values.numel():
            return
        low, high = pixel_values.aminmax()
        if not torch.isfinite(high - low):
            bad = int((~torch.isfinite(pixel_values.flatten(1))).any(1).sum())
            raise ValueError(f"pixel_values hold NaN or infinite values in {bad} of {len(pixel_values)} examples")
        if self.config.num_levels is not None and (low < 0 or high > 1):
            raise ValueError(f"pixel_values must lie in [0, 1], level k of K as k / (K - 1), got [{low:g}, {high:g}]")
        if self.training:
            self._data_checked = True
            if self.config.num_levels is None:
                self.check_coverage(pixel_values)

    # --- the density ---

    @property
    def log_partition(self) -> Tensor:
        """c, the estimate of log Z of exp(-energy), in nats; the sum over the bridges of telescoping."""
        return self.log_partitions.sum()

    def bridge_scores(self, x: Tensor) -> Tensor:
        """What the energy function gives, ``(..., *event_shape) -> (..., num_energies)``, float32 at least.

        Raises:
            ValueError: an energy function of another shape.
        """
        flat = self.noise.flatten(x)
        points = flat.reshape(-1, flat.shape[-1])
        scores = self.energy_function(points)
        count = self.config.num_energies
        if count == 1 and scores.shape == (len(points),):
            scores = scores[:, None]
        if scores.shape != (len(points), count):
            wanted = f"({len(points)},)" if count == 1 else f"({len(points)}, {count}), one for each bridge"
            raise ValueError(
                f"the energy function must give one number a point, {wanted} for points {tuple(points.shape)}, but gave "
                f"{tuple(scores.shape)}"
            )
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).view(*flat.shape[:-1], count)

    def energy(self, x: Tensor) -> Tensor:
        """-G(x), continuous ``(..., *event_shape) -> (...)``; of the ratio to the noise where the model learns that."""
        return -self.bridge_scores(x).sum(-1)

    def log_unnormalized(self, x: Tensor) -> Tensor:
        """Log of the density without c in nats, ``(..., *event_shape) -> (...)``: -energy, and log q where that is a ratio."""
        scores = -self.energy(x)
        if self.config.loss_type == "neg":
            scores = scores + math.log(self.config.noise_ratio)
        return scores + self.noise.log_prob(x) if self.config.learns_ratio else scores

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of continuous x, ``(..., *event_shape) -> (...)``; normalised as far as c is right."""
        return self.log_unnormalized(x) - self.log_partition

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log-density at x, in the shape of x; it does not depend on c."""
        with torch.enable_grad():
            x = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_unnormalized(x).sum(), x)
        return gradient

    # --- training ---

    def draw_noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise for a batch of continuous x: ``(batch, nu, *event_shape)``, or ``(round(nu * batch), *event_shape)``.

        The first where nu is a whole number. Without a generator evaluation takes numbers that the batch determines.
        """
        config = self.config
        if generator is None and not self.training:
            seed = int(keys_of_examples(x).sum()) & (2**63 - 1)
            generator = torch.Generator().manual_seed(seed)
        whole = config.noise_ratio == int(config.noise_ratio)
        shape = (len(x), int(config.noise_ratio)) if whole else (max(1, round(config.noise_ratio * len(x))),)
        if config.loss_type == "conditional":
            device = x.device if generator is None else generator.device
            normal = torch.randn(*shape, *config.event_shape, generator=generator, device=device).to(x.device, x.dtype)
            return x[:, None] + config.perturbation_scale * self._data_std.view(config.event_shape) * normal
        return self.noise.sample(shape, generator).to(x.device)

    @property
    def _data_std(self) -> Tensor:
        """Standard deviations ``(D,)`` of the data as far as they are known: of a network's inputs, or of the noise."""
        if isinstance(self.energy_function, NetworkEnergy):
            return self.energy_function.input_std
        low, high = self.noise.box(1.0)
        return (high - low) / 2

    def forward(
        self,
        pixel_values: Tensor,
        noise_samples: Tensor | None = None,
        noise: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
    ) -> NCEDensityOutput | tuple:
        """Log-density of a batch, and the loss.

        Args:
            pixel_values: ``(batch, *event_shape)``, as the image processor gives it.
            noise_samples: ``(batch, k, *event_shape)``, each example's own, or ``(count, *event_shape)``, everybody's; drawn
                if not given. ``full`` has no use for them.
            noise: uniform draws of `dequantize`, in the shape of ``pixel_values``.
            return_loss: whether to draw noise and compute the loss.
            return_dict: an [`NCEDensityOutput`], or a tuple of its fields that are not None.

        Raises:
            ValueError: a wrong shape, or NaN and infinite values.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        x = self.dequantize(pixel_values, noise)
        loss = noise_logits = None
        scores = self.bridge_scores(x)
        if return_loss and self.config.loss_type == "full":
            loss = self._exact_loss(x, scores[..., 0])
        elif return_loss:
            if noise_samples is None:
                noise_samples = self.draw_noise(x)
            elif self.config.loss_type in WITH_OWN_NOISE and noise_samples.ndim != x.ndim + 1:
                raise ValueError(
                    f"loss_type={self.config.loss_type!r} needs noise_samples (batch, k, {', '.join(map(str, x.shape[1:]))}), "
                    f"got {tuple(noise_samples.shape)}"
                )
            if self.config.loss_type == "telescoping":
                loss, noise_logits = self._telescoping_loss(x, noise_samples)
            else:
                loss, noise_logits = self._loss(x, scores[..., 0], noise_samples)
        log_prob = scores.sum(-1) - self.log_partition
        if self.config.loss_type == "neg":
            log_prob = log_prob + math.log(self.config.noise_ratio)
        if self.config.learns_ratio:
            log_prob = log_prob + self.noise.log_prob(x)
        output = NCEDensityOutput(
            loss=loss,
            log_prob=log_prob,
            energy=-scores.sum(-1),
            log_partition=self.log_partition,
            noise_logits=noise_logits,
        )
        return output if return_dict else output.to_tuple()

    def _loss(self, x: Tensor, scores: Tensor, noise_samples: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        noise_scores = self.bridge_scores(noise_samples)[..., 0]
        ratio = noise_scores.numel() / len(x)
        log_q = log_q_of_noise = torch.zeros((), device=x.device)
        if config.loss_type not in ("density_ratio", "neg"):
            log_q, log_q_of_noise = self.noise.log_prob(x), self.noise.log_prob(noise_samples)
        # by the model, whatever loss trains it
        if config.learns_ratio:
            logits = noise_scores - self.log_partition - (0.0 if config.loss_type == "density_ratio" else math.log(ratio))
        else:
            logits = nce_logits(scores[:0], noise_scores, 0.0, log_q_of_noise, self.log_partition, ratio)[1]
        if config.relative_to_noise and config.loss_type == "conditional":
            scores, noise_scores = scores + log_q, noise_scores + log_q_of_noise
        elif config.relative_to_noise:  # G - log q is what the network gives
            log_q = log_q_of_noise = torch.zeros((), device=x.device)
        if self.loss.loss_type in ("neg", "nce", "density_ratio"):
            noise_scores, log_q_of_noise = noise_scores.flatten(), log_q_of_noise.flatten()
        return self.loss(scores, noise_scores, log_q, log_q_of_noise, self.log_partition), logits

    def _exact_loss(self, x: Tensor, scores: Tensor) -> Tensor:
        points, log_volume = self.quadrature_grid()
        of_grid = self.bridge_scores(points)[..., 0]
        if self.config.learns_ratio:
            of_grid, scores = of_grid + self.noise.log_prob(points), scores + self.noise.log_prob(x)
        return self.loss(scores, of_grid, noise_log_noise=-log_volume)

    def bridge_points(self, x: Tensor, noise_samples: Tensor) -> Tensor:
        """The path from data to noise, ``(batch, k, num_bridges + 1, *event_shape)``."""
        count = self.config.num_bridges
        share = (torch.arange(count + 1, device=x.device, dtype=x.dtype) / count) ** self.config.bridge_power
        share = share.view(-1, *[1] * (x.ndim - 1))
        return (1 - share.square()).clamp_min(0).sqrt() * x[:, None, None] + share * noise_samples[:, :, None]

    def _telescoping_loss(self, x: Tensor, noise_samples: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.bridge_scores(self.bridge_points(x, noise_samples)) - self.log_partitions
        # bridge m tells point m, its data, from point m + 1, its noise
        near, far = (part.diagonal(dim1=-2, dim2=-1) for part in (scores[:, :, :-1], scores[:, :, 1:]))
        loss = (F.softplus(-near) + F.softplus(far)).mean((0, 1)).sum()
        return loss, scores[:, :, -1].sum(-1)

    # --- what c lacks ---

    def quadrature_grid(self) -> tuple[Tensor, float]:
        """Midpoints of a grid over the noise's box, ``(points, *event_shape)``, and the log-volume of a cell.

        Eight standard deviations to either side where the noise is unbounded; ``config.quadrature_points`` along each axis.
        """
        low, high = self.noise.box()
        count = self.config.quadrature_points
        steps = (torch.arange(count, device=low.device, dtype=low.dtype) + 0.5) / count
        axes = [torch.lerp(low[axis], high[axis], steps) for axis in range(self.config.event_size)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, *self.config.event_shape)
        return points, ((high - low) / count).log().sum().item()

    @torch.no_grad()
    def check_normalization(
        self,
        num_samples: int = 100_000,
        method: str | None = None,
        generator: torch.Generator | None = None,
        num_steps: int = 1000,
        step_size: float = 0.1,
    ) -> Normalization:
        """The integral of exp(log_prob): 1 if c is the log-partition function.

        Args:
            num_samples: noise samples of ``"importance"``, walks of ``"annealed"``.
            method: ``"grid"``, over the box of the noise (eight standard deviations where it is unbounded), in one or two
                dimensions; ``"importance"``, the mean of exp(log_prob(y)) / q(y) over noise y; ``"annealed"``, the same over
                walks from the noise to the model (Neal 2001, arXiv:physics/9803008), where single steps are too far. Both
                are right on average, and too low more often than not where few samples carry the weight. By default the
                first where it can be, and the second else.
            generator: where the noise is drawn from.
            num_steps: densities ``q^(1 - b) p^b`` on the way of ``"annealed"``, one Langevin step each.
            step_size: of that step, in units of the data's standard deviations.

        Raises:
            ValueError: an unknown method, or a grid in more than two dimensions.
        """
        small = self.config.event_size <= 2
        method = method or ("grid" if small else "importance")
        if method not in ("grid", "importance", "annealed") or (method == "grid" and not small):
            raise ValueError(
                f"method={method!r} must be 'importance' or 'annealed', or 'grid' in one or two dimensions, not "
                f"{self.config.event_size}"
            )
        if method == "grid":
            points, log_volume = self.quadrature_grid()
            log_prob = torch.cat([self.log_prob(part) for part in points.split(POINTS_AT_A_TIME)]).double()
            log_integral = (log_prob.logsumexp(0) + log_volume).item()
            return Normalization(math.exp(log_integral), 0.0, log_integral, None, method)
        if method == "importance":
            log_weights = self._weighted_noise(num_samples, generator)[1]
        else:
            log_weights = self._annealed_weights(num_samples, generator, num_steps, step_size)
        log_weights = log_weights - self.log_partition.double()
        weights = (log_weights - log_weights.max()).exp()
        log_integral = (log_weights.logsumexp(0) - math.log(num_samples)).item()
        relative = (weights.std() / weights.mean() / math.sqrt(num_samples)).item()
        return Normalization(
            math.exp(log_integral),
            relative * math.exp(log_integral),
            log_integral,
            (weights.sum().square() / weights.square().sum()).item(),
            method,
        )

    @torch.no_grad()
    def normalize(self, num_samples: int = 100_000, generator: torch.Generator | None = None) -> Normalization:
        """Move c to where the integral is 1, as `check_normalization` finds it. Returns what it was before."""
        if self.config.log_partition == "none":
            raise ValueError("log_partition='none' has no c to set; use 'fixed' or 'learned'")
        found = self.check_normalization(num_samples, generator=generator)
        self.log_partitions += found.log_integral / self.log_partitions.numel()
        return found

    # --- samples ---

    @torch.no_grad()
    def _weighted_noise(
        self, count: int, generator: torch.Generator | None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Noise samples, and log of unnormalised density over noise density at each in nats, float64."""
        parts, log_weights = [], []
        for size in [POINTS_AT_A_TIME] * (count // POINTS_AT_A_TIME) + [count % POINTS_AT_A_TIME]:
            if size:
                y = self.noise.sample(size, generator)
                parts.append(y)
                log_weights.append(self.log_unnormalized(y).double() / temperature - self.noise.log_prob(y).double())
        return torch.cat(parts), torch.cat(log_weights)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        method: str = "importance",
        oversampling: int = 50,
        num_steps: int = 200,
        step_size: float = 0.1,
    ) -> Tensor:
        """Draw examples, ``(num_samples, *event_shape)``, continuous.

        Args:
            num_samples: how many.
            temperature: samples have the density to the power ``1 / temperature``; below 1 they are more probable and vary
                less.
            generator: of all randomness.
            method: ``"importance"`` (sampling-importance-resampling: of ``oversampling`` times as many noise samples each is
                drawn by its weight), ``"rejection"`` (each is kept by its weight over the largest that was found; exact but
                for weights beyond that), or ``"langevin"`` (a Metropolis-adjusted walk along the score, from the noise).
            oversampling: noise samples for each sample of ``"importance"``.
            num_steps: of ``"langevin"``.
            step_size: of ``"langevin"``, in units of the data's standard deviations.

        Raises:
            ValueError: an unknown method, or a number that is not positive.
            RuntimeError: rejection keeps less than one of 100,000.
            FloatingPointError: the walk left the finite numbers.
        """
        if method not in SAMPLERS:
            raise ValueError(f"method={method!r} is not known; it must be one of {', '.join(map(repr, SAMPLERS))}")
        for name, value in (
            ("num_samples", num_samples),
            ("temperature", temperature),
            ("oversampling", oversampling),
            ("num_steps", num_steps),
            ("step_size", step_size),
        ):
            if value <= 0:
                raise ValueError(f"{name}={value} must be positive")
        if method == "langevin":
            return self._langevin(num_samples, temperature, generator, num_steps, step_size)
        if method == "rejection":
            return self._reject(num_samples, temperature, generator)
        count = num_samples * oversampling
        y, log_weights = self._weighted_noise(count, generator, temperature)
        weights = (log_weights - log_weights.max()).exp()
        effective = (weights.sum().square() / weights.square().sum()).item()
        if effective < num_samples:
            logger.warning(
                f"{count} noise samples are worth {effective:.0f} of the model's, fewer than num_samples={num_samples}: some "
                "will repeat. Raise oversampling, or take noise closer to the data."
            )
        device = weights.device if generator is None else generator.device
        chosen = torch.multinomial(weights.to(device), num_samples, replacement=True, generator=generator)
        return y[chosen.to(y.device)]

    def _reject(self, num_samples: int, temperature: float, generator: torch.Generator | None) -> Tensor:
        bound = self._weighted_noise(10_000, generator, temperature)[1].max()
        kept, tried = self.noise.sample(0), 0
        while len(kept) < num_samples:
            y, log_weights = self._weighted_noise(min(POINTS_AT_A_TIME, max(1000, 2 * num_samples)), generator, temperature)
            device = y.device if generator is None else generator.device
            uniform = torch.rand(len(kept) + len(y), generator=generator, device=device).to(y.device).log()
            # what was kept under a bound that turns out to be too low would not all have been kept under the right one
            higher = torch.maximum(bound, log_weights.max())
            kept = torch.cat([kept[uniform[: len(kept)] < bound - higher], y[uniform[len(kept) :] < log_weights - higher]])
            bound, tried = higher, tried + len(y)
            if len(kept) < 1e-5 * tried and tried > 10**6:
                raise RuntimeError(
                    f"rejection kept {len(kept)} of {tried} noise samples: it is too far away. Use method='langevin'"
                )
        return kept[:num_samples]

    def _langevin(
        self, num_samples: int, temperature: float, generator: torch.Generator | None, num_steps: int, step_size: float
    ) -> Tensor:
        x = self.noise.sample(num_samples, generator)
        state = (x, *self._target(x, 1.0, temperature))
        for _ in range(num_steps):
            state = self._langevin_step(*state, step_size, generator, temperature=temperature)
        if not torch.isfinite(state[1]).all():
            raise FloatingPointError("the walk left the finite numbers: lower step_size, or the density is no density")
        return state[0]

    def _target(self, x: Tensor, share: float, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log of ``q^(1 - share) f^share`` to the power 1 / temperature, f the unnormalised density, and its gradient."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = share * self.log_unnormalized(x) / temperature
            if share < 1:
                value = value + (1 - share) * self.noise.log_prob(x) / temperature
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def _langevin_step(
        self,
        x: Tensor,
        log_density: Tensor,
        drift: Tensor,
        step_size: float,
        generator: torch.Generator | None,
        share: float = 1.0,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The Metropolis-adjusted Langevin algorithm, with the data's standard deviations as its preconditioner.

        Takes and gives points with the log-density and gradient of `_target` there.
        """
        scale = step_size * self._data_std.view(self.config.event_shape)
        device = x.device if generator is None else generator.device
        normal = torch.randn(x.shape, generator=generator, device=device).to(x.device)
        proposal = x + 0.5 * scale.square() * drift + scale * normal
        new_density, new_drift = self._target(proposal, share, temperature)
        back = (x - proposal - 0.5 * scale.square() * new_drift) / scale
        odds = new_density - log_density + 0.5 * (normal.square() - back.square()).flatten(1).sum(1)
        uniform = torch.rand(len(x), generator=generator, device=device).to(x.device)
        moves = uniform.log() < odds  # False where the odds are NaN
        shaped = moves.view(-1, *[1] * (x.ndim - 1))
        return (
            torch.where(shaped, proposal, x),
            torch.where(moves, new_density, log_density),
            torch.where(shaped, new_drift, drift),
        )

    def _annealed_weights(self, count: int, generator: torch.Generator | None, num_steps: int, step_size: float) -> Tensor:
        """Log-weights of annealed importance sampling in nats, ``(count,)`` float64; their mean weight is exp(log Z)."""
        x = self.noise.sample(count, generator)
        log_weights = torch.zeros(count, dtype=torch.float64, device=x.device)
        for step in range(1, num_steps + 1):
            ratio = self.log_unnormalized(x).double() - self.noise.log_prob(x).double()
            log_weights += ratio / num_steps
            if step < num_steps:
                share = step / num_steps
                x = self._langevin_step(x, *self._target(x, share), step_size, generator, share)[0]
        return log_weights


__all__ = ["NCEDensityModel", "NCEDensityOutput", "Normalization"]
