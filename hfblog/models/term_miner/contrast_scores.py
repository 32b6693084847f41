"""How characteristic of a domain a word is, against other corpora.

Counts of words that a corpus lacks are 0. The code published with the article left them out instead, so that the words that
only the domain has came last.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

COMBINATIONS = ("least", "pooled")


def _check(domain: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    domain, background = np.asarray(domain, np.float64), np.asarray(background, np.float64)
    if domain.ndim != 1 or domain.shape != background.shape:
        raise ValueError(f"counts of the domain {domain.shape} and of the background {background.shape} must be (n,) alike")
    for name, counts in (("domain", domain), ("background", background)):
        if not np.isfinite(counts).all() or (counts < 0).any():
            raise ValueError(f"counts of the {name} must be finite and not negative")
    if not domain.sum():
        raise ValueError("the domain's counts are all 0")
    return domain, background


def smoothed_share(domain: np.ndarray, background: np.ndarray, prior_strength: float | None = None) -> np.ndarray:
    """The share of a word's occurrences that fall into the domain, drawn towards the share of all words (kexue.fm 6540).

    With t the occurrences in both, the background's rescaled to the domain's total, this is ``(a + alpha s) / (t + s)``, alpha
    the share of all words.

    Args:
        domain, background: ``(n,)``, counts of the same words.
        prior_strength: s, in occurrences; the mean of t if None, as in the article.

    Returns:
        ``(n,)`` float64 in (0, 1).

    Raises:
        ValueError: other shapes, a negative count or NaN, or an empty domain.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog import smoothed_share
    >>> smoothed_share(np.array([5, 5]), np.array([0, 10])).round(3).tolist()
    [0.667, 0.4]

    ```
    """
    domain, background = _check(domain, background)
    scaled = background * (domain.sum() / max(background.sum(), 1e-300)) if background.any() else background
    together = domain + scaled
    strength = together.mean() if prior_strength is None else prior_strength
    share = domain.sum() / together.sum()
    return (domain + share * strength) / (together + strength)


def log_odds(domain: np.ndarray, background: np.ndarray, prior_strength: float | None = None) -> np.ndarray:
    """z-scores of the log-odds ratio with a Dirichlet prior in proportion to both corpora together (Monroe et al. 2008).

    Args:
        domain, background: ``(n,)``, counts of the same words.
        prior_strength: total of the prior's counts; a hundredth of both corpora if None.

    Returns:
        ``(n,)`` float64, standard deviations.
    """
    domain, background = _check(domain, background)
    together = domain + background
    strength = 0.01 * together.sum() if prior_strength is None else prior_strength
    # a word that neither has counts half
    prior = strength * np.maximum(together, 0.5) / np.maximum(together, 0.5).sum()

    def log_odds_of(counts: np.ndarray) -> np.ndarray:
        return np.log(counts + prior) - np.log(np.maximum(counts.sum() + strength - counts - prior, 1e-12))

    variance = 1 / (domain + prior) + 1 / (background + prior)
    return (log_odds_of(domain) - log_odds_of(background)) / np.sqrt(variance)


def g2(domain: np.ndarray, background: np.ndarray, prior_strength: float | None = None) -> np.ndarray:
    """Dunning's log-likelihood ratio (1993) of each word against all others, negative where the domain has it less.

    Args:
        domain, background: ``(n,)``, counts of the same words.
        prior_strength: not used.

    Returns:
        ``(n,)`` float64, twice nats; chi-squared with one degree of freedom where both corpora are alike.
    """
    domain, background = _check(domain, background)
    totals = domain.sum(), background.sum()
    share = totals[0] / sum(totals)

    def part(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
        ratio = np.divide(observed, expected, out=np.ones_like(observed), where=(observed > 0) & (expected > 0))
        return observed * np.log(ratio)

    together = domain + background
    rest = sum(totals) - together
    value = part(domain, together * share) + part(background, together * (1 - share))
    value += part(totals[0] - domain, rest * share) + part(totals[1] - background, rest * (1 - share))
    return np.where(domain >= together * share, 2, -2) * np.maximum(value, 0)


def kl_contribution(domain: np.ndarray, background: np.ndarray, prior_strength: float | None = None) -> np.ndarray:
    """What each word adds to the divergence of the domain from the background, p ln p / q (Tomokiyo and Hurst 2003).

    Args:
        domain, background: ``(n,)``, counts of the same words.
        prior_strength: added to every count of the background; 0.5 if None.

    Returns:
        ``(n,)`` float64, nats.
    """
    domain, background = _check(domain, background)
    smoothed = background + (0.5 if prior_strength is None else prior_strength)
    p, q = domain / domain.sum(), smoothed / max(smoothed.sum(), 1e-300)
    return p * np.log(np.where(domain > 0, p, 1) / np.where(domain > 0, np.maximum(q, 1e-300), 1))


CONTRASTS: dict[str, Callable[..., np.ndarray]] = {
    "share": smoothed_share,
    "log_odds": log_odds,
    "g2": g2,
    "kl": kl_contribution,
}


def contrast_of(
    method: str,
    domain: np.ndarray,
    backgrounds: np.ndarray,
    combine: str = "least",
    prior_strength: float | None = None,
) -> np.ndarray:
    """The contrast of words with one or more backgrounds.

    Args:
        method: ``"share"``, ``"log_odds"``, ``"g2"`` or ``"kl"``.
        domain: ``(n,)``, counts.
        backgrounds: ``(B, n)``, counts of the same words.
        combine: ``"least"``: a word must stand out against each; ``"pooled"``: against all together, each with the same mass.
        prior_strength: of the method.

    Returns:
        ``(n,)`` float64, the larger the more characteristic.

    Raises:
        ValueError: an unknown method or combination, no background, or counts that cannot be.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog import contrast_of
    >>> contrast_of("share", np.array([5, 5]), np.array([[0, 10], [9, 1]])).round(2).tolist()
    [0.42, 0.4]

    ```
    """
    if method not in CONTRASTS:
        raise ValueError(f"contrast={method!r} must be one of {', '.join(map(repr, CONTRASTS))}")
    if combine not in COMBINATIONS:
        raise ValueError(f"combine={combine!r} must be one of {', '.join(map(repr, COMBINATIONS))}")
    backgrounds = np.atleast_2d(np.asarray(backgrounds, np.float64))
    if not len(backgrounds):
        raise ValueError("a contrast needs at least one background")
    if combine == "pooled":
        totals = backgrounds.sum(1, keepdims=True)
        if not totals.any():
            pooled = backgrounds.sum(0)
        else:
            pooled = (backgrounds * (totals.max() / np.where(totals > 0, totals, 1))).sum(0)
        return CONTRASTS[method](domain, pooled, prior_strength)
    return np.min([CONTRASTS[method](domain, background, prior_strength) for background in backgrounds], axis=0)


def false_discovery(values: np.ndarray) -> np.ndarray:
    """q-values: the share of false discoveries among the words of no smaller G2 (Benjamini and Hochberg 1995).

    Args:
        values: ``(n,)``, of `g2`.

    Returns:
        ``(n,)`` float64 in [0, 1]; the test is one-sided, for words that the domain has more.
    """
    values = np.asarray(values, np.float64)
    # of chi-squared with one degree of freedom, whose root is normal
    tail = torch.special.erfc(torch.from_numpy(np.sqrt(np.abs(values) / 2))).numpy() / 2
    chances = np.where(values > 0, tail, 1 - tail)
    order = np.argsort(-chances, kind="stable")
    ranks = np.arange(len(values), 0, -1)
    q_values = np.empty(len(values))
    q_values[order] = np.minimum.accumulate(np.minimum(chances[order] * len(values) / ranks, 1))
    return q_values


def burstiness(counts: np.ndarray, documents: np.ndarray, num_documents: int) -> np.ndarray:
    """Residual inverse document frequency, nats: by how much rarer in documents a word is than if it fell into them at
    random (Church and Gale 1995).

    Args:
        counts: ``(n,)``, occurrences.
        documents: ``(n,)``, in how many documents.
        num_documents: of the corpus.

    Returns:
        ``(n,)`` float64; 0 for a word that never occurs.

    Raises:
        ValueError: more documents than occurrences, or than there are.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast_scores import burstiness
    >>> burstiness(np.array([10, 10]), np.array([10, 2]), 100).round(2).tolist()
    [-0.05, 1.56]

    ```
    """
    counts, documents = np.asarray(counts, np.float64), np.asarray(documents, np.float64)
    if (documents > counts).any() or (documents > num_documents).any():
        raise ValueError("a word is in no more documents than it occurs times, nor than there are")
    occurring = counts > 0
    expected = -np.expm1(-counts / max(num_documents, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(expected) - np.log(documents / max(num_documents, 1))
    return np.where(occurring, values, 0.0)


__all__ = [
    "CONTRASTS",
    "burstiness",
    "contrast_of",
    "false_discovery",
    "g2",
    "kl_contribution",
    "log_odds",
    "smoothed_share",
]
