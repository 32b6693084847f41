"""Noise with a known density: what noise contrastive estimation tells the data from.

Distributions over vectors and images (`UniformNoise`, `GaussianNoise`, `GaussianMixtureNoise`, `FlowNoise`) and over a
vocabulary (`UnigramNoise`). All of them are modules whose state is buffers, so they are saved with the model that holds them,
and all of them are of use alone: ``fit``, ``sample`` and ``log_prob``, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

logger = logging.get_logger(__name__)

LOG_2PI = math.log(2 * math.pi)
COVARIANCES = ("full", "diagonal")


def _device_of(generator: torch.Generator | None, device: torch.device) -> torch.device:
    return device if generator is None else generator.device


class NoiseDistribution(nn.Module):
    """A density over events of one shape. Points are ``(..., *event_shape)``, log-densities ``(...)`` in nats.

    Args:
        event_shape: shape of one event.
    """

    def __init__(self, event_shape: list[int] | tuple[int, ...]):
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.event_size = math.prod(self.event_shape)

    # --- what a distribution defines, over vectors ---

    def reset(self) -> None:
        """The standard law of its kind, for weights that a checkpoint lacks."""
        raise NotImplementedError(f"{type(self).__name__} does not define reset")

    def _fit(self, x: Tensor, generator: torch.Generator) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not define _fit")

    def _log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _log_prob")

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _sample")

    def box(self, width: float = 8.0) -> tuple[Tensor, Tensor]:
        """Corners ``(D,)`` of a box that holds nearly all of its mass; ``width`` standard deviations where it is infinite."""
        raise NotImplementedError(f"{type(self).__name__} has no box")

    # --- what all of them share ---

    def flatten(self, x: Tensor) -> Tensor:
        """``(..., *event_shape) -> (..., D)`` in at least float32.

        Raises:
            ValueError: the shape is not that of events.
        """
        count = len(self.event_shape)
        if x.ndim < count or tuple(x.shape[x.ndim - count :]) != self.event_shape:
            raise ValueError(f"expected points of shape (..., {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}")
        x = x.reshape(*x.shape[: x.ndim - count], self.event_size)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    @torch.no_grad()
    def fit(self, x: Tensor, generator: torch.Generator | None = None) -> NoiseDistribution:
        """Fit to data ``(examples, *event_shape)``.

        Raises:
            ValueError: fewer than two examples, a wrong shape, or NaN and infinite values; the message counts them.
        """
        x = self.flatten(x).double().flatten(0, -2)
        bad = int((~torch.isfinite(x)).any(1).sum())
        if bad:
            raise ValueError(f"{bad} of {len(x)} examples hold NaN or infinite values: remove them before the noise is fitted")
        if len(x) < 2:
            raise ValueError(f"noise is fitted to at least 2 examples, got {len(x)}")
        self._fit(x, generator or torch.Generator().manual_seed(0))
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, ``(..., *event_shape) -> (...)``; minus infinity where it is 0."""
        return self._log_prob(self.flatten(x))

    @torch.no_grad()
    def sample(self, sample_shape: int | tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Independent draws, ``(*sample_shape, *event_shape)``."""
        shape = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        return self._sample(math.prod(shape), generator).reshape(*shape, *self.event_shape)

    def fraction_outside(self, x: Tensor) -> float:
        """Share of points at which the density is 0, where a ratio to it says nothing."""
        return torch.isneginf(self.log_prob(x)).double().mean().item()


class UniformNoise(NoiseDistribution):
    """Uniform in a box, ``[0, 1]^D`` until it is fitted.

    Args:
        event_shape: shape of one event.
        margin: how far the fitted box reaches beyond the data, in parts of their range on either side.
    """

    def __init__(self, event_shape: list[int] | tuple[int, ...], margin: float = 0.1):
        super().__init__(event_shape)
        if margin < 0:
            raise ValueError(f"margin={margin} must not be negative")
        self.margin = margin
        self.register_buffer("low", torch.zeros(self.event_size))
        self.register_buffer("high", torch.ones(self.event_size))

    def reset(self) -> None:
        init.zeros_(self.low)
        init.ones_(self.high)

    def _fit(self, x: Tensor, generator: torch.Generator) -> None:
        low, high = x.amin(0), x.amax(0)
        # a dimension without range still needs a width
        room = self.margin * (high - low) + torch.where(high > low, 0.0, 0.5)
        self.set_box(low - room, high + room)

    def set_box(self, low: Tensor | float, high: Tensor | float) -> UniformNoise:
        """The box itself; a number stands for all dimensions.

        Raises:
            ValueError: a side without a positive length.
        """
        corners = [torch.as_tensor(corner, dtype=torch.float32).expand(self.event_size) for corner in (low, high)]
        if not (corners[1] > corners[0]).all():
            raise ValueError(f"the box [{corners[0].tolist()}, {corners[1].tolist()}] needs low < high in every dimension")
        self.low.copy_(corners[0])
        self.high.copy_(corners[1])
        return self

    @property
    def log_volume(self) -> Tensor:
        return (self.high - self.low).log().sum()

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= self.low) & (x <= self.high)).all(-1)
        return torch.where(inside, -self.log_volume.to(x.dtype), -math.inf)

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        uniform = torch.rand(count, self.event_size, generator=generator, device=_device_of(generator, self.low.device))
        return torch.lerp(self.low, self.high, uniform.to(self.low))

    def box(self, width: float = 8.0) -> tuple[Tensor, Tensor]:
        return self.low, self.high


def _moments(x: Tensor, covariance: str, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and Cholesky factor ``(D, D)``, or standard deviations ``(D,)``, of weighted points.

    A little is added to every variance: data on a plane have no density.
    """
    weights = torch.ones(len(x), dtype=x.dtype) if weights is None else weights
    weights = weights / weights.sum()
    mean = weights @ x
    centred = x - mean
    variance = weights @ centred.square()
    ridge = 1e-6 * variance.mean() + 1e-12
    if covariance == "diagonal":
        return mean, (variance + ridge).sqrt()
    matrix = (centred * weights[:, None]).T @ centred
    return mean, torch.linalg.cholesky(matrix + ridge * torch.eye(len(mean), dtype=x.dtype))


class GaussianNoise(NoiseDistribution):
    """A normal law, the standard one until it is fitted.

    Args:
        event_shape: shape of one event.
        covariance: ``"full"`` or ``"diagonal"``.
        scale: factor on the fitted standard deviations; above 1 the noise reaches further than the data.
    """

    def __init__(self, event_shape: list[int] | tuple[int, ...], covariance: str = "full", scale: float = 1.0):
        super().__init__(event_shape)
        _check_covariance(covariance, scale)
        self.covariance, self.fitted_scale = covariance, scale
        self.register_buffer("mean", torch.zeros(self.event_size))
        shape = (self.event_size, self.event_size) if covariance == "full" else (self.event_size,)
        self.register_buffer("scale", torch.empty(shape))
        self.reset()

    def reset(self) -> None:
        init.zeros_(self.mean)
        if self.covariance == "full":
            init.eye_(self.scale)
        else:
            init.ones_(self.scale)

    def _fit(self, x: Tensor, generator: torch.Generator) -> None:
        mean, scale = _moments(x, self.covariance)
        self.set_moments(mean, self.fitted_scale * scale)

    def set_moments(self, mean: Tensor | float, scale: Tensor | float) -> GaussianNoise:
        """Mean ``(D,)`` and Cholesky factor ``(D, D)``, standard deviations ``(D,)``, or one number for all dimensions."""
        scale = torch.as_tensor(scale, dtype=torch.float32)
        if self.covariance == "full" and scale.ndim < 2:
            scale = scale.expand(self.event_size).diag()
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32).expand(self.event_size))
        self.scale.copy_(scale.expand(self.scale.shape))
        return self

    def _log_prob(self, x: Tensor) -> Tensor:
        return _normal_log_prob(x, self.mean, self.scale)

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        normal = torch.randn(count, self.event_size, generator=generator, device=_device_of(generator, self.mean.device))
        normal = normal.to(self.mean.device, self.mean.dtype)
        return self.mean + (normal @ self.scale.T if self.covariance == "full" else normal * self.scale)

    def box(self, width: float = 8.0) -> tuple[Tensor, Tensor]:
        std = self.scale.square().sum(1).sqrt() if self.covariance == "full" else self.scale
        return self.mean - width * std, self.mean + width * std


def _check_covariance(covariance: str, scale: float) -> None:
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance={covariance!r} is not known; it must be one of {', '.join(map(repr, COVARIANCES))}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale} must be positive")


def _normal_log_prob(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``(..., D) -> (...)`` of one normal law, whose scale is a Cholesky factor or standard deviations."""
    centred = (x - mean.to(x.dtype)).reshape(-1, x.shape[-1])
    scale = scale.to(x.dtype)
    if scale.ndim == 2:
        standard = torch.linalg.solve_triangular(scale, centred.T, upper=False).T
        log_det = scale.diagonal().log().sum()
    else:
        standard, log_det = centred / scale, scale.log().sum()
    return (-0.5 * standard.square().sum(-1) - 0.5 * LOG_2PI * x.shape[-1] - log_det).reshape(x.shape[:-1])


class GaussianMixtureNoise(NoiseDistribution):
    """A mixture of normal laws, fitted by expectation maximisation.

    Args:
        event_shape: shape of one event.
        num_components: how many.
        covariance: ``"full"`` or ``"diagonal"``.
        scale: factor on the fitted standard deviations.
        num_iterations: most steps of the fit.
    """

    def __init__(
        self,
        event_shape: list[int] | tuple[int, ...],
        num_components: int = 8,
        covariance: str = "full",
        scale: float = 1.0,
        num_iterations: int = 100,
    ):
        super().__init__(event_shape)
        _check_covariance(covariance, scale)
        if num_components < 1:
            raise ValueError(f"num_components={num_components} must be at least 1")
        self.num_components, self.covariance, self.fitted_scale = num_components, covariance, scale
        self.num_iterations = num_iterations
        size = (self.event_size,) * (2 if covariance == "full" else 1)
        self.register_buffer("log_weights", torch.empty(num_components))
        self.register_buffer("means", torch.empty(num_components, self.event_size))
        self.register_buffer("scales", torch.empty(num_components, *size))
        self.reset()

    def reset(self) -> None:
        init.constant_(self.log_weights, -math.log(self.num_components))
        init.zeros_(self.means)
        if self.covariance == "full":
            init.copy_(self.scales, torch.eye(self.event_size).expand(self.scales.shape))
        else:
            init.ones_(self.scales)

    def _fit(self, x: Tensor, generator: torch.Generator) -> None:
        if len(x) < 2 * self.num_components:
            raise ValueError(f"num_components={self.num_components} needs at least twice as many examples, got {len(x)}")
        means = self._spread_out(x, generator)
        responsibilities = F.one_hot(torch.cdist(x, means).argmin(1), self.num_components).to(x.dtype)
        before = -math.inf
        for _ in range(self.num_iterations):
            # nobody's component takes a little of everything, and comes back in the next steps
            weights = responsibilities + 1e-10
            log_weights = (weights.sum(0) / weights.sum()).log()
            moments = [_moments(x, self.covariance, weights[:, index]) for index in range(self.num_components)]
            joint = torch.stack([_normal_log_prob(x, *pair) for pair in moments], 1) + log_weights
            log_prob = joint.logsumexp(1, keepdim=True)
            responsibilities = (joint - log_prob).exp()
            if (now := log_prob.mean().item()) - before < 1e-6:
                break
            before = now
        self.log_weights.copy_(log_weights)
        self.means.copy_(torch.stack([mean for mean, _ in moments]))
        self.scales.copy_(self.fitted_scale * torch.stack([scale for _, scale in moments]))

    def _spread_out(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Starting means, k-means++ (Arthur and Vassilvitskii 2007)."""
        first = torch.randint(len(x), (1,), generator=generator).item()
        chosen = [x[first]]
        nearest = (x - x[first]).square().sum(1)
        for _ in range(self.num_components - 1):
            # of data that repeat themselves any point will do
            odds = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
            index = torch.multinomial(odds, 1, generator=generator).item()
            chosen.append(x[index])
            nearest = torch.minimum(nearest, (x - x[index]).square().sum(1))
        return torch.stack(chosen)

    def _log_prob(self, x: Tensor) -> Tensor:
        parts = [_normal_log_prob(x, mean, scale) for mean, scale in zip(self.means, self.scales, strict=True)]
        return (torch.stack(parts, -1) + self.log_weights.to(x.dtype)).logsumexp(-1)

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        device = _device_of(generator, self.means.device)
        weights = self.log_weights.exp().to(device)
        component = torch.multinomial(weights, count, replacement=True, generator=generator).to(self.means.device)
        normal = torch.randn(count, self.event_size, generator=generator, device=device).to(
            self.means.device, self.means.dtype
        )
        scales = self.scales[component]
        moved = (scales @ normal[..., None])[..., 0] if self.covariance == "full" else scales * normal
        return self.means[component] + moved

    def box(self, width: float = 8.0) -> tuple[Tensor, Tensor]:
        std = self.scales.square().sum(2).sqrt() if self.covariance == "full" else self.scales
        return (self.means - width * std).amin(0), (self.means + width * std).amax(0)


class FlowNoise(NoiseDistribution):
    """A trained model of the data as noise: any that has ``log_prob(x)`` and ``sample(count, generator=)``. It stays fixed.

    Args:
        flow: for instance a `NiceFlowModel`.
        event_shape: shape of one event.

    Raises:
        ValueError: it has no density, or one of other events.
    """

    def __init__(self, flow: PreTrainedModel, event_shape: list[int] | tuple[int, ...]):
        super().__init__(event_shape)
        if not (callable(getattr(flow, "log_prob", None)) and callable(getattr(flow, "sample", None))):
            raise ValueError(f"{type(flow).__name__} has no log_prob and sample: it cannot be noise")
        of_flow = tuple(getattr(flow.config, "event_shape", self.event_shape))
        if of_flow != self.event_shape:
            raise ValueError(f"the flow is a density over events of shape {of_flow}, but event_shape={self.event_shape}")
        self.flow = flow.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FlowNoise:
        super().train(mode)
        self.flow.eval()
        return self

    def reset(self) -> None:
        """A flow has its own weights."""

    def fit(self, x: Tensor, generator: torch.Generator | None = None) -> FlowNoise:
        """Nothing: a flow was trained before."""
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        x = self.flatten(x)
        return self.flow.log_prob(x.reshape(-1, *self.event_shape)).reshape(x.shape[:-1])

    def _sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        return self.flow.sample(count, generator=generator)

    def box(self, width: float = 8.0) -> tuple[Tensor, Tensor]:
        points = self.sample(10_000, torch.Generator().manual_seed(0)).flatten(1)
        mean, std = points.mean(0), points.std(0)
        return mean - width * std, mean + width * std


# --- words ---


def alias_table(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's table of a distribution: draw i uniformly, keep it with chance ``keep[i]``, else take ``alias[i]``.

    Vose 1991, doi:10.1109/32.92917; O(n) to build, O(1) to draw.

    Args:
        probabilities: ``(n,)`` float64, sums to 1.

    Returns:
        ``keep`` ``(n,)`` float64 and ``alias`` ``(n,)`` int64.
    """
    count = len(probabilities)
    scaled = (probabilities * count).tolist()
    keep, alias = [1.0] * count, list(range(count))
    small = [index for index, value in enumerate(scaled) if value < 1]
    large = [index for index, value in enumerate(scaled) if value >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], alias[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    # what is left is 1 but for rounding
    return np.asarray(keep), np.asarray(alias, dtype=np.int64)


def count_ids(ids: Tensor, attention_mask: Tensor | None, vocab_size: int, what: str = "word") -> Tensor:
    """How often each id occurs, ``(V,)`` int64, where the mask is not 0.

    Raises:
        ValueError: there are none, or one outside the vocabulary; the message calls them ``what``.
    """
    ids = ids if attention_mask is None else ids[attention_mask != 0]
    if not ids.numel():
        raise ValueError(f"there are no {what}s to count: input_ids is empty, or attention_mask is 0 everywhere")
    low, high = ids.min().item(), ids.max().item()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{what} ids must lie in [0, {vocab_size}), but range from {low} to {high}")
    return torch.bincount(ids.flatten().cpu(), minlength=vocab_size)


class UnigramNoise(nn.Module):
    """Words drawn by their counts to a power, ``q(w) = count(w)^power / sum``, from an alias table; uniform until fitted.

    Args:
        vocab_size: number of words V.
        power: 1 is the law of the words themselves, 0.75 word2vec's, 0 the uniform one.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import UnigramNoise
    >>> noise = UnigramNoise(4).fit(torch.tensor([5, 3, 1, 1]))
    >>> noise.log_prob(torch.tensor([0, 3])).exp()
    tensor([0.5000, 0.1000])
    >>> noise.sample((2, 100), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 100])

    ```
    """

    def __init__(self, vocab_size: int, power: float = 1.0):
        super().__init__()
        if not math.isfinite(power):
            raise ValueError(f"power={power} must be finite")
        self.vocab_size, self.power = vocab_size, power
        self.register_buffer("counts", torch.ones(vocab_size, dtype=torch.int64))
        self.register_buffer("log_probs", torch.full((vocab_size,), -math.log(vocab_size)))
        self.register_buffer("keep", torch.ones(vocab_size))
        self.register_buffer("alias", torch.arange(vocab_size))

    def reset(self) -> None:
        init.ones_(self.counts)
        init.constant_(self.log_probs, -math.log(self.vocab_size))
        init.ones_(self.keep)
        init.copy_(self.alias, torch.arange(self.vocab_size))

    @torch.no_grad()
    def fit(self, counts: Tensor, smoothing: int = 0) -> UnigramNoise:
        """Set the counts.

        Args:
            counts: ``(V,)`` integers, how often each word occurs.
            smoothing: added to all of them.

        Raises:
            ValueError: a wrong number of counts, a negative one, or one that is 0 after smoothing.
        """
        if tuple(counts.shape) != (self.vocab_size,):
            raise ValueError(f"counts must be ({self.vocab_size},), one for each word, got {tuple(counts.shape)}")
        counts = counts.to("cpu", torch.int64) + smoothing
        if int(counts.min()) < 0:
            raise ValueError(f"counts must not be negative, word {int(counts.argmin())} has {int(counts.min())}")
        zero = (counts == 0).nonzero()[:, 0]
        if len(zero):
            raise ValueError(
                f"{len(zero)} of {self.vocab_size} words have a count of 0, word {int(zero[0])} first: noise that never draws "
                "a word cannot tell its probability, and the loss of a text that holds it is infinite. Give smoothing=1, or "
                "leave such words out of the vocabulary."
            )
        weights = counts.double() ** self.power
        probabilities = weights / weights.sum()
        keep, alias = alias_table(probabilities.numpy())
        self.counts.copy_(counts)
        self.log_probs.copy_(probabilities.log())
        self.keep.copy_(torch.from_numpy(keep))
        self.alias.copy_(torch.from_numpy(alias))
        return self

    def log_prob(self, ids: Tensor) -> Tensor:
        """Log-probability in nats, of any shape of word ids."""
        return self.log_probs[ids]

    @torch.no_grad()
    def sample(self, sample_shape: int | tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Independent word ids with replacement, int64 ``sample_shape``."""
        shape = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        device = self.keep.device
        settings = {"generator": generator, "device": _device_of(generator, device)}
        ids = torch.randint(self.vocab_size, shape, **settings).to(device)
        uniform = torch.rand(shape, **settings).to(device)
        return torch.where(uniform < self.keep[ids], ids, self.alias[ids])


NOISES: dict[str, Callable[..., NoiseDistribution]] = {
    "uniform": UniformNoise,
    "gaussian": GaussianNoise,
    "gaussian_mixture": GaussianMixtureNoise,
}


def reset_noise(module: nn.Module) -> bool:
    """Give noise that a checkpoint lacks its standard law; whether the module is noise."""
    if isinstance(module, (NoiseDistribution, UnigramNoise)):
        module.reset()
        return True
    return False


__all__ = [
    "FlowNoise",
    "GaussianMixtureNoise",
    "GaussianNoise",
    "NoiseDistribution",
    "UniformNoise",
    "UnigramNoise",
    "alias_table",
]
