"""Losses that learn an unnormalised model from data and noise.

Su Jianlin 2018, https://kexue.fm/archives/5617; Gutmann and Hyvärinen 2012; Mnih and Teh 2012, arXiv:1206.6426. A model states
``log p(x) = G(x) - c`` where ``c`` stands for the log-partition function. The losses differ in what G is at their minimum, for
data from p, noise from q, and nu noise samples a datum:

| `loss_type` | loss of one datum | at the minimum |
|---|---|---|
| ``nce`` | softplus(-l(x)) + sum_noise softplus(l(y)), ``l = G - c - log q - log nu`` | G - c = log p |
| ``density_ratio`` | softplus(-(G(x) - c)) + mean_noise softplus(G(y) - c), the article's | G - c = log p - log q |
| ``neg`` | softplus(-G(x)) + sum_noise softplus(G(y)), word2vec's | G = log p - log q - log nu |
| ``ranking`` | -log of x's share among x and its noise in exp(G - log q) | G = log p + any constant |
| ``random_softmax`` | the same without log q | that of ``ranking`` where q is uniform |
| ``conditional`` | mean_noise softplus(G(y) - G(x)), y = x + symmetric noise | G = log p + any constant |
| ``full`` | logsumexp of all outcomes - G(x), maximum likelihood | G = log p + any constant |

``density_ratio`` gives the energy itself only where q is uniform, and then ``log Z = c + log V``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOSS_TYPES = ("nce", "density_ratio", "neg", "ranking", "random_softmax", "conditional", "full")
# What these losses learn leaves a constant open.
UNNORMALIZED_LOSSES = ("ranking", "random_softmax", "conditional", "full")
# Those whose G is a ratio to the noise.
RATIO_LOSSES = ("density_ratio", "neg")


class NCELoss(nn.Module):
    r"""One of the losses above, in float32 at least.

    Args:
        loss_type: see the table of this module.
        noise_ratio: nu, noise samples a datum; by default what the shapes say.

    Raises:
        ValueError: an unknown loss, or a ratio that is not positive.

    Example, a density known but for its constant:

    ```python
    >>> import torch
    >>> from hfblog import GaussianNoise, NCELoss
    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = GaussianNoise((1,)).set_moments(0.0, 2.0)
    >>> x, y = torch.randn(20000, 1, generator=generator), noise.sample(200000, generator)
    >>> c = torch.zeros((), requires_grad=True)
    >>> optimizer = torch.optim.LBFGS([c])
    >>> def loss():
    ...     optimizer.zero_grad()
    ...     value = NCELoss()(-x[:, 0] ** 2 / 2, -y[:, 0] ** 2 / 2, noise.log_prob(x), noise.log_prob(y), c)
    ...     value.backward()
    ...     return value
    >>> _ = optimizer.step(loss)
    >>> abs(c.item() - torch.tensor(2 * torch.pi).sqrt().log().item()) < 0.02
    True

    ```
    """

    def __init__(self, loss_type: str = "nce", noise_ratio: float | None = None):
        super().__init__()
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type={loss_type!r} is not known; it must be one of {', '.join(map(repr, LOSS_TYPES))}")
        if noise_ratio is not None and not 0 < noise_ratio < math.inf:
            raise ValueError(f"noise_ratio={noise_ratio} must be positive: so many noise samples stand against each datum")
        self.loss_type, self.noise_ratio = loss_type, noise_ratio

    def extra_repr(self) -> str:
        return f"loss_type={self.loss_type!r}" + ("" if self.noise_ratio is None else f", noise_ratio={self.noise_ratio}")

    def forward(
        self,
        data_scores: Tensor,
        noise_scores: Tensor,
        data_log_noise: Tensor | float = 0.0,
        noise_log_noise: Tensor | float = 0.0,
        log_partition: Tensor | float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """The loss in nats.

        Args:
            data_scores: ``(N,)``, G of the data.
            noise_scores: ``(N, k)``, G of each datum's own noise, or ``(M,)``, that of noise which all data share. Of
                ``full``, the scores of all outcomes, ``(N, V)`` or ``(V,)``.
            data_log_noise: log q of the data, broadcast to ``(N,)``.
            noise_log_noise: log q of the noise, broadcast to ``noise_scores``. Of ``full``, minus the logarithm of each
                outcome's volume: 0 for classes.
            log_partition: c, a number or one for each datum ``(N,)``; of ``nce`` and ``density_ratio``.
            reduction: ``"mean"``, ``"sum"`` or ``"none"``, one number for each datum.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if data_scores.ndim != 1 or noise_scores.ndim not in (1, 2) or not noise_scores.numel():
            raise ValueError(
                f"data_scores must be (N,) and noise_scores (N, k) or (M,), got {tuple(data_scores.shape)} and "
                f"{tuple(noise_scores.shape)}"
            )
        if noise_scores.ndim == 2 and len(noise_scores) != len(data_scores):
            raise ValueError(f"noise_scores {tuple(noise_scores.shape)} must have a row for each of {len(data_scores)} data")
        data_scores, noise_scores = (
            scores.to(torch.promote_types(scores.dtype, torch.float32)) for scores in (data_scores, noise_scores)
        )
        losses = getattr(self, f"_{self.loss_type}")(data_scores, noise_scores, data_log_noise, noise_log_noise, log_partition)
        if reduction == "none":
            return losses
        return losses.mean() if reduction == "mean" else losses.sum()

    # Each gives (N,). Shared noise counts for every datum alike.

    def _ratio(self, data: Tensor, noise: Tensor) -> float:
        if self.noise_ratio is not None:
            return self.noise_ratio
        return noise.shape[1] if noise.ndim == 2 else len(noise) / len(data)

    def _nce(self, data, noise, data_log_noise, noise_log_noise, log_partition):
        ratio = self._ratio(data, noise)
        data, noise = nce_logits(data, noise, data_log_noise, noise_log_noise, log_partition, ratio)
        return F.softplus(-data) + ratio * F.softplus(noise).mean(-1)

    def _density_ratio(self, data, noise, data_log_noise, noise_log_noise, log_partition):
        data, noise = nce_logits(data, noise, 0.0, 0.0, log_partition, 1.0)
        return F.softplus(-data) + F.softplus(noise).mean(-1)

    def _neg(self, data, noise, data_log_noise, noise_log_noise, log_partition):
        return F.softplus(-data) + self._ratio(data, noise) * F.softplus(noise).mean(-1)

    def _ranking(self, data, noise, data_log_noise, noise_log_noise, log_partition):
        # Noise is drawn with replacement, whether or not it is the datum itself: hiding such hits would bias the ratio.
        data, noise = data - data_log_noise, noise - noise_log_noise
        if noise.ndim == 1:
            noise = noise.expand(len(data), -1)
        return torch.cat([data[:, None], noise], 1).logsumexp(1) - data

    def _random_softmax(self, data, noise, data_log_noise, noise_log_noise, log_partition):
        return self._ranking(data, noise, 0.0, 0.0, 0.0)

    def _conditional(self, data, noise, data_log_noise, noise_log_noise, log_partition):
        if noise.ndim == 1:
            raise ValueError("loss_type='conditional' needs noise around each datum, (N, k); shared noise is (M,)")
        return F.softplus(noise - data[:, None]).mean(1)

    def _full(self, data, noise, data_log_noise, noise_log_noise, log_partition):
        return (noise - noise_log_noise).logsumexp(-1) - data


def nce_logits(
    data: Tensor,
    noise: Tensor,
    data_log_noise: Tensor | float,
    noise_log_noise: Tensor | float,
    log_partition: Tensor | float,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """``l = G - c - log q - log nu``: log-odds that a point is a datum, of the data ``(N,)`` and of the noise."""
    c_of_noise = log_partition
    if isinstance(log_partition, Tensor) and log_partition.ndim == 1:
        if noise.ndim == 1:
            raise ValueError("a log_partition for each datum needs noise for each datum, (N, k); shared noise is (M,)")
        c_of_noise = log_partition[:, None]
    return (
        data - log_partition - data_log_noise - math.log(ratio),
        noise - c_of_noise - noise_log_noise - math.log(ratio),
    )


__all__ = ["LOSS_TYPES", "NCELoss"]
