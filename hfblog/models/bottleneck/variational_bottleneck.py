"""The variational bottleneck: a code z ~ N(mu(h), Sigma(h)) of features h, its rate in nats, and what holds the rate down.

Su Jianlin 2018, https://kexue.fm/archives/6181; Alemi et al. 2017, "Deep variational information bottleneck",
https://arxiv.org/abs/1612.00410.

The rate R = E_x KL(p(z|x) || r(z)) bounds the mutual information from above, I(Z; X) <= R, and is tight where r is the
marginal of z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast

from .configuration_bottleneck import BottleneckConfig, check_choice, num_scale_outputs

LOG_VAR_RANGE = (-20.0, 10.0)
# softplus underflows to 0 in float32, and a deviation of 0 has no finite rate
SMALLEST_STD = 1e-6
LOG_2PI = math.log(2 * math.pi)


class GaussianPosterior:
    """Normal laws of codes, in float32.

    Args:
        mean: ``(batch, K)``.
        scale: standard deviations ``(batch, K)``, or Cholesky factors L ``(batch, K, K)`` of the covariances L L^T.
    """

    def __init__(self, mean: Tensor, scale: Tensor):
        self.mean, self.scale = mean, scale

    @property
    def is_full(self) -> bool:
        return self.scale.ndim == 3

    @property
    def variance(self) -> Tensor:
        """``(batch, K)``, of each coordinate by itself."""
        return self.scale.square().sum(2) if self.is_full else self.scale.square()

    @property
    def log_diagonal(self) -> Tensor:
        """``(batch, K)``; its sum is the logarithm of the root of the covariance's determinant."""
        return (self.scale.diagonal(dim1=1, dim2=2) if self.is_full else self.scale).log()

    def transform(self, noise: Tensor) -> Tensor:
        """Standard normal numbers ``(batch, samples, K)`` to codes: mu + sigma * noise, or mu + L noise."""
        with maybe_autocast(noise.device.type, enabled=False):  # which would lower the product
            spread = torch.einsum("bij,bsj->bsi", self.scale, noise) if self.is_full else self.scale[:, None] * noise
        return self.mean[:, None] + spread

    def log_prob_of_noise(self, noise: Tensor) -> Tensor:
        """Log-densities ``(batch, samples)`` in nats of the codes that `transform` makes of this noise."""
        return -0.5 * (noise.square() + LOG_2PI).sum(-1) - self.log_diagonal.sum(1, keepdim=True)

    def log_prob(self, latents: Tensor) -> Tensor:
        """Log-densities ``(codes, batch)`` in nats of codes ``(codes, K)`` under every law."""
        centred = latents[:, None] - self.mean
        if self.is_full:
            noise = torch.linalg.solve_triangular(self.scale, centred.permute(1, 2, 0), upper=False).permute(2, 0, 1)
        else:
            noise = centred / self.scale
        return -0.5 * (noise.square() + LOG_2PI).sum(-1) - self.log_diagonal.sum(1)


def gaussian_rate(posterior: GaussianPosterior, mean: Tensor | float = 0.0, log_var: Tensor | float = 0.0) -> Tensor:
    """KL divergence in nats to a diagonal Gaussian, ``(batch, K)``; the sum over K is the rate.

    For a full covariance only that sum has a meaning.
    """
    log_var = torch.as_tensor(log_var, dtype=posterior.mean.dtype, device=posterior.mean.device)
    squared = (posterior.variance + (posterior.mean - mean).square()) * (-log_var).exp()
    return 0.5 * (squared - 1 + log_var) - posterior.log_diagonal


class StandardPrior(nn.Module):
    """N(0, I)."""

    def rate(self, posterior: GaussianPosterior) -> Tensor:
        """``(batch, K)`` nats."""
        return gaussian_rate(posterior)

    def log_prob(self, latents: Tensor) -> Tensor:
        """``(..., K) -> (...)``, nats."""
        return -0.5 * (latents.square() + LOG_2PI).sum(-1)

    def transform(self, noise: Tensor, choice: Tensor) -> Tensor:
        """Codes ``(count, K)`` from standard normal numbers; ``choice``, uniform in [0, 1), picks a mixture's component."""
        return noise


class LearnedPrior(StandardPrior):
    """Diagonal Gaussian with learned mean and scale (VIBERT; Mahabadi et al. 2021, arXiv:2106.05469)."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.mean = nn.Parameter(torch.empty(latent_dim))
        self.log_var = nn.Parameter(torch.empty(latent_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.zeros_(self.mean)
        init.zeros_(self.log_var)

    def rate(self, posterior: GaussianPosterior) -> Tensor:
        return gaussian_rate(posterior, self.mean.float(), self.log_var.float())

    def log_prob(self, latents: Tensor) -> Tensor:
        log_var = self.log_var.float()
        squared = (latents - self.mean.float()).square() * (-log_var).exp()
        return -0.5 * (squared + log_var + LOG_2PI).sum(-1)

    def transform(self, noise: Tensor, choice: Tensor) -> Tensor:
        return self.mean.float() + (self.log_var.float() / 2).exp() * noise


class MixturePrior(nn.Module):
    """A mixture of Gaussians with learned weights; the components are given or learned."""

    def __init__(self, num_components: int, latent_dim: int):
        super().__init__()
        self.logits = nn.Parameter(torch.empty(num_components))
        self.mean = nn.Parameter(torch.empty(num_components, latent_dim))
        self.log_var = nn.Parameter(torch.empty(num_components, latent_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.zeros_(self.logits)
        init.normal_(self.mean)
        init.zeros_(self.log_var)

    def components(self) -> GaussianPosterior:
        return GaussianPosterior(self.mean.float(), (self.log_var.float() / 2).exp())

    def log_prob(self, latents: Tensor) -> Tensor:
        """``(..., K) -> (...)``, nats."""
        each = self.components().log_prob(latents.flatten(0, -2)) + self.logits.float().log_softmax(0)
        return each.logsumexp(1).view(latents.shape[:-1])

    def transform(self, noise: Tensor, choice: Tensor) -> Tensor:
        edges = self.logits.float().softmax(0).cumsum(0)
        chosen = torch.searchsorted(edges, choice.float()).clamp_max(len(edges) - 1)
        components = self.components()
        picked = GaussianPosterior(components.mean[chosen], components.scale[chosen])
        return picked.transform(noise[:, None]).squeeze(1)


class VampPrior(MixturePrior):
    """The mixture of the posteriors at learned pseudo-inputs (Tomczak and Welling 2018, arXiv:1705.07120).

    Args:
        num_components: pseudo-inputs.
        heads: the layers that make a posterior of features; shared with the bottleneck, which owns them.
    """

    def __init__(self, num_components: int, input_dim: int, heads: GaussianHeads):
        nn.Module.__init__(self)
        self.logits = nn.Parameter(torch.empty(num_components))
        self.pseudo_inputs = nn.Parameter(torch.empty(num_components, input_dim))
        self._heads = [heads]  # in a list: a submodule would stand twice in the state dictionary
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.zeros_(self.logits)
        init.normal_(self.pseudo_inputs)

    def components(self) -> GaussianPosterior:
        # a copy: a loaded parameter may lie at any address, and a product's last bits depend on where its input lies
        return self._heads[0](self.pseudo_inputs.clone())


class GaussianHeads(nn.Module):
    """Features to mean and scale of a posterior, by one linear layer each."""

    def __init__(self, input_dim: int, latent_dim: int, posterior: str, std_param: str, std_shift: float):
        super().__init__()
        self.std_param, self.std_shift = std_param, std_shift
        self.latent_dim, self.is_full = latent_dim, posterior == "full"
        self.mean = nn.Linear(input_dim, latent_dim)
        self.scale = nn.Linear(input_dim, num_scale_outputs(posterior, latent_dim, input_dim))

    def std(self, raw: Tensor) -> Tensor:
        if self.std_param == "log_var":
            return (raw.clamp(*LOG_VAR_RANGE) / 2).exp()
        return F.softplus(raw + self.std_shift) + SMALLEST_STD

    def forward(self, features: Tensor) -> GaussianPosterior:
        features = features.to(self.mean.weight.dtype)
        # What follows the layers is float32 whatever they compute in: a rate is a small difference of large numbers.
        mean, raw = self.mean(features).float(), self.scale(features).float()
        if not self.is_full:
            return GaussianPosterior(mean, self.std(raw))
        size = self.latent_dim
        rows, columns = torch.tril_indices(size, size, -1, device=raw.device)
        factor = torch.diag_embed(self.std(raw[:, :size]))
        factor[:, rows, columns] = raw[:, size:]
        return GaussianPosterior(mean, factor)


@dataclass
class BottleneckOutput(ModelOutput):
    """What a [`VariationalBottleneck`] made of features, in float32.

    Args:
        latents: ``(batch, samples, K)``; the mean as the only sample where none was asked for.
        mean: ``(batch, K)``.
        scale: standard deviations ``(batch, K)``, or Cholesky factors ``(batch, K, K)``; None without a bottleneck.
        rate: ``(batch,)``, KL(p(z|x) || r(z)) in nats, summed over the dimensions; None without a bottleneck.
        penalty: scalar, what the rate adds to a loss in nats; 0 without a bottleneck.
    """

    latents: Tensor | None = None
    mean: Tensor | None = None
    scale: Tensor | None = None
    rate: Tensor | None = None
    penalty: Tensor | None = None


class VariationalBottleneck(nn.Module):
    r"""Lets through a stated number of nats; on its own between any two parts of a network.

    Args:
        input_dim: size of the features.
        latent_dim, bottleneck, beta, target_rate, dual_update, dual_lr, kl_warmup_steps, free_bits, posterior, std_param,
            std_shift, prior, num_components: see [`BottleneckConfig`].

    Raises:
        ValueError: a setting that is not known or does not fit the others.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import VariationalBottleneck
    >>> layer = VariationalBottleneck(input_dim=32, latent_dim=8, bottleneck="dual", target_rate=3.0)
    >>> output = layer(torch.randn(4, 32), num_samples=2)
    >>> output.latents.shape, output.rate.shape
    (torch.Size([4, 2, 8]), torch.Size([4]))
    >>> loss = output.latents.square().mean() + output.penalty

    ```
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        *,
        bottleneck: str = "fixed",
        beta: float = 1e-3,
        target_rate: float | None = None,
        dual_update: str = "exponential",
        dual_lr: float = 0.01,
        kl_warmup_steps: int = 0,
        free_bits: float = 0.0,
        posterior: str = "diag",
        std_param: str = "log_var",
        std_shift: float = -5.0,
        prior: str = "standard",
        num_components: int = 50,
    ):
        super().__init__()
        settings = {
            "bottleneck": bottleneck,
            "beta": beta,
            "target_rate": target_rate,
            "dual_update": dual_update,
            "dual_lr": dual_lr,
            "kl_warmup_steps": kl_warmup_steps,
            "free_bits": free_bits,
            "posterior": posterior,
            "std_param": std_param,
            "prior": prior,
            "num_components": num_components,
        }
        BottleneckConfig(latent_dim=latent_dim, **settings)  # for its checks
        self.settings = settings
        self.input_dim, self.latent_dim = input_dim, latent_dim
        if bottleneck == "none":
            self.mean = nn.Linear(input_dim, latent_dim)
            return
        self.heads = GaussianHeads(input_dim, latent_dim, posterior, std_param, std_shift)
        if prior == "vamp":
            self.prior = VampPrior(num_components, input_dim, self.heads)
        elif prior == "mixture":
            self.prior = MixturePrior(num_components, latent_dim)
        else:
            self.prior = LearnedPrior(latent_dim) if prior == "learned" else StandardPrior()
        # The state of the constraint: saved, resumed, and moved by training alone.
        self.register_buffer("multiplier", torch.empty((), dtype=torch.float32))
        self.register_buffer("steps", torch.empty((), dtype=torch.long))
        self.reset_state()

    @torch.no_grad()
    def reset_state(self) -> None:
        if self.is_stochastic:
            init.constant_(self.multiplier, self.settings["beta"])
            init.zeros_(self.steps)

    @property
    def is_stochastic(self) -> bool:
        return self.settings["bottleneck"] != "none"

    @property
    def needs_samples(self) -> bool:
        """Whether the rate has no closed form and is estimated with the samples."""
        return self.is_stochastic and isinstance(self.prior, MixturePrior)

    def extra_repr(self) -> str:
        told = ("bottleneck", "target_rate", "posterior", "prior")
        shown = ", ".join(f"{name}={self.settings[name]!r}" for name in told if self.settings[name] is not None)
        return f"{self.input_dim}, {self.latent_dim}, {shown}"

    def posterior(self, features: Tensor) -> GaussianPosterior:
        """The law of the code of each row of features ``(batch, input_dim)``."""
        if features.ndim != 2 or features.shape[1] != self.input_dim:
            raise ValueError(f"features must be (batch, {self.input_dim}), got {tuple(features.shape)}")
        if not self.is_stochastic:
            raise ValueError("bottleneck='none' has codes, but no posterior")
        return self.heads(features)

    def rate(self, posterior: GaussianPosterior, noise: Tensor | None = None) -> Tensor:
        """KL divergence of posteriors to the prior in nats, ``(batch,)``.

        Args:
            noise: standard normal numbers ``(batch, samples, K)`` for a prior without a closed form.
        """
        if not self.needs_samples:
            return self.prior.rate(posterior).sum(1)
        if noise is None:
            raise ValueError(f"the rate under prior={self.settings['prior']!r} is estimated with samples: give noise")
        return (posterior.log_prob_of_noise(noise) - self.prior.log_prob(posterior.transform(noise))).mean(1)

    def penalty(self, posterior: GaussianPosterior, rate: Tensor) -> Tensor:
        """What the rate adds to the loss, a mean over the examples."""
        weight, target = self.multiplier, self.settings["target_rate"]
        if self.training and self.settings["kl_warmup_steps"]:
            weight = weight * (self.steps.float() / self.settings["kl_warmup_steps"]).clamp_max(1)
        if self.settings["bottleneck"] == "hinge":
            return weight * (rate - target).clamp_min(0).mean()
        if self.settings["free_bits"]:
            rate = self.prior.rate(posterior).clamp_min(self.settings["free_bits"]).sum(1)
        return weight * (rate.mean() - (target if self.settings["bottleneck"] == "dual" else 0))

    @torch.no_grad()
    def update_state(self, rate: Tensor) -> None:
        """Count a training step, and move the multiplier towards the target rate.

        All processes of a distributed training move it alike, by the mean rate of the whole batch. The state is replaced and
        not changed in place: the backward pass of a compiled graph computes the weight of the rate once more from the old.
        """
        self.steps = self.steps + 1
        if self.settings["bottleneck"] != "dual":
            return
        mean = rate.detach().mean()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean = mean / torch.distributed.get_world_size()
        step, target = self.settings["dual_lr"], self.settings["target_rate"]
        if self.settings["dual_update"] == "linear":
            self.multiplier = (self.multiplier + step * (mean - target)).clamp_min(0)
        else:
            self.multiplier = self.multiplier * (step * (mean.clamp_min(1e-9) / target).log().clamp(-1, 1)).exp()

    def forward(
        self,
        features: Tensor,
        num_samples: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> BottleneckOutput:
        """Codes of features, and their rate.

        Args:
            features: ``(batch, input_dim)``.
            num_samples: codes to draw for each row; by default one in training, and otherwise none: the mean is the code.
            noise: standard normal numbers ``(batch, samples, K)`` in place of drawn ones.
            generator: where they are drawn from.

        Raises:
            ValueError: a shape that does not fit.
        """
        if not self.is_stochastic:
            mean = self.mean(features.to(self.mean.weight.dtype)).float()
            return BottleneckOutput(latents=mean[:, None], mean=mean, penalty=mean.new_zeros(()))
        posterior = self.posterior(features)
        is_sampled = noise is not None or num_samples is not None or self.training
        if noise is None and (is_sampled or self.needs_samples):
            noise = draw_normal((len(features), num_samples or 1, self.latent_dim), posterior.mean, generator)
        elif noise is not None and (noise.ndim != 3 or noise.shape[::2] != posterior.mean.shape):
            raise ValueError(f"noise must be ({len(features)}, samples, {self.latent_dim}), got {tuple(noise.shape)}")
        rate = self.rate(posterior, noise)
        penalty = self.penalty(posterior, rate)
        if self.training and torch.is_grad_enabled():  # a query between two steps is no step
            self.update_state(rate)
        return BottleneckOutput(
            latents=posterior.transform(noise) if is_sampled else posterior.mean[:, None],
            mean=posterior.mean,
            scale=posterior.scale,
            rate=rate,
            penalty=penalty,
        )

    def sample(self, num_samples: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Codes ``(num_samples, K)`` drawn from the prior; a component's spread is multiplied by ``temperature``."""
        if not self.is_stochastic:
            raise ValueError("bottleneck='none' has no prior to draw from")
        if num_samples < 1 or not 0 <= temperature < math.inf:
            raise ValueError(f"num_samples={num_samples} must be at least 1 and temperature={temperature} not negative")
        like = next(iter(self.prior.parameters()), self.multiplier)
        noise = draw_normal((num_samples, self.latent_dim), like.float(), generator)
        choice = torch.special.ndtr(draw_normal((num_samples,), like.float(), generator))
        return self.prior.transform(temperature * noise, choice)


def draw_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal float32 numbers from a generator of any device, placed where ``like`` is."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(like.device)


def interpolate_latents(start: Tensor, end: Tensor, steps: int, mode: str = "spherical") -> Tensor:
    """Codes on the way from ``start`` to ``end``, ``(batch, K) -> (batch, steps, K)``.

    ``"spherical"`` is z1 cos t + z2 sin t for t from 0 to pi / 2: independent standard normal ends give standard normal codes
    all the way (https://kexue.fm/archives/6181). ``"linear"`` is the straight line, whose middle is too short by sqrt(2).
    """
    check_choice("mode", mode, ("spherical", "linear"))
    if start.shape != end.shape or start.ndim != 2:
        raise ValueError(f"both ends must be (batch, K), got {tuple(start.shape)} and {tuple(end.shape)}")
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2, the two ends")
    share = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)[:, None]
    if mode == "linear":
        return (1 - share) * start[:, None] + share * end[:, None]
    angle = share * (math.pi / 2)
    return angle.cos() * start[:, None] + angle.sin() * end[:, None]


def init_bottleneck_weights(module: nn.Module) -> bool:
    """Fill what a bottleneck holds beside its linear layers; whether the module was one of its parts."""
    if isinstance(module, VariationalBottleneck):
        module.reset_state()
    elif isinstance(module, (LearnedPrior, MixturePrior)):
        module.reset_parameters()
    else:
        return False
    return True


__all__ = ["BottleneckOutput", "GaussianPosterior", "VariationalBottleneck", "gaussian_rate", "interpolate_latents"]
