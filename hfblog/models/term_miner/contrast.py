"""How characteristic of a domain a word is: its counts against other corpora, against longer terms, and over documents.

The words are those of all corpora together, and a word that a corpus lacks has count 0. The code published with
https://kexue.fm/archives/6540 aligned the two corpora by their common words instead; those that only the domain has, its most
characteristic ones, got NaN and came last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.special import xlogy
from scipy.stats import chi2, false_discovery_control

COMBINATIONS = ("least", "pooled")


def _check_counts(name: str, counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 1:
        raise ValueError(f"{name} must be (n,), got shape {counts.shape}")
    bad = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
    if len(bad):
        raise ValueError(f"{name} must be finite and not negative, got {counts[bad[0]]} at {bad[0]}; a missing word counts 0")
    return counts


def _check_pair(domain: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    domain, background = _check_counts("domain", domain), _check_counts("background", background)
    if len(domain) != len(background):
        raise ValueError(f"domain and background must count the same words, got {len(domain)} and {len(background)}")
    for name, counts in (("domain", domain), ("background", background)):
        if not counts.any():
            raise ValueError(f"{name} is empty: all of its {len(counts)} counts are 0")
    return domain, background


def _check_positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be positive and finite")
    return value


def smoothed_share(domain: np.ndarray, background: np.ndarray, prior_strength: float | None = None) -> np.ndarray:
    """The share of a word's occurrences that the domain has, drawn towards one half (https://kexue.fm/archives/6540).

    With a the domain's count, b the background's rescaled to the domain's total, ``t = a + b`` and s the prior's strength this
    is ``(a + alpha s) / (t + s)``. alpha is the domain's share of all occurrences, after the rescaling always one half. A
    common factor of either corpus changes nothing, unless a prior's strength is given.

    Args:
        domain: ``(n,)``, counts.
        background: ``(n,)``, counts of the same words.
        prior_strength: s, in occurrences; None for the mean of t, as in the article.

    Returns:
        ``(n,)`` float64 in (0, 1), one half for a word that neither has.

    Raises:
        ValueError: a negative count or NaN, different lengths, a corpus without occurrences, or a strength that is not
            positive.

    Example, 5 occurrences of each word in the domain:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import smoothed_share
    >>> smoothed_share(np.array([5, 5]), np.array([0, 10])).round(3).tolist()
    [0.667, 0.4]

    ```
    """
    domain, background = _check_pair(domain, background)
    together = domain + background * (domain.sum() / background.sum())
    strength = together.mean() if prior_strength is None else _check_positive("prior_strength", prior_strength)
    return (domain + strength / 2) / (together + strength)


def log_odds(domain: np.ndarray, background: np.ndarray, prior_strength: float | None = None) -> np.ndarray:
    """z-scores of the log-odds ratio under an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, Fightin' Words).

    The prior is in proportion to the counts of both corpora together, and both get it. The variance is theirs,
    ``1 / (a + prior) + 1 / (b + prior)``.

    Args:
        domain: ``(n,)``, counts.
        background: ``(n,)``, counts of the same words.
        prior_strength: total of the prior, in occurrences; None for half of both totals together, so that a word's prior is
            the mean of its two counts. With that much, of words with one count in the domain the one that the background
            lacks always comes first; with a weak prior its variance, about 1 / prior, puts it behind words that the background
            has. The price is that the scores are on the small side: without any difference their variance is below 1.

    Returns:
        ``(n,)`` float64, in standard deviations; 0 for a word that neither has and for one that is all of both.

    Raises:
        ValueError: as `smoothed_share`.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import log_odds
    >>> log_odds(np.array([10, 10, 20]), np.array([0, 10, 30])).round(2).tolist()
    [2.4, 0.0, -2.67]

    ```
    """
    domain, background = _check_pair(domain, background)
    together = domain + background
    total = together.sum()
    strength = total / 2 if prior_strength is None else _check_positive("prior_strength", prior_strength)
    prior, prior_of_rest = strength * together / total, strength * (total - together) / total
    scores = np.zeros(len(domain))
    # the others have no log-odds
    some = (together > 0) & (together < total)
    with_prior = [counts[some] + prior[some] for counts in (domain, background)]
    rest = [counts.sum() - counts[some] + prior_of_rest[some] for counts in (domain, background)]
    ratio = np.log(with_prior[0] / rest[0]) - np.log(with_prior[1] / rest[1])
    scores[some] = ratio / np.sqrt(1 / with_prior[0] + 1 / with_prior[1])
    return scores


def g2(domain: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Signed log-likelihood ratio G2 of the table word / other words by domain / background (Dunning 1993).

    Args:
        domain: ``(n,)``, counts.
        background: ``(n,)``, counts of the same words.

    Returns:
        ``(n,)`` float64 in twice nats, positive where the domain has the word more than its share, negative where less. The
        size is asymptotically chi-squared with one degree of freedom where both corpora have the word alike.

    Raises:
        ValueError: a negative count or NaN, different lengths, or a corpus without occurrences.

    Example, a word that only the domain has, in corpora of the same size, has 2 a ln 2 and a little more:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import g2
    >>> g2(np.array([5, 995]), np.array([0, 1000])).round(2).tolist()
    [6.94, -6.94]

    ```
    """
    domain, background = _check_pair(domain, background)
    totals = np.array([[domain.sum()], [background.sum()]])
    together = domain + background
    # (corpus, word or rest, n)
    observed = np.stack([[domain, totals[0] - domain], [background, totals[1] - background]])
    expected = totals[:, None] * np.stack([together, totals.sum() - together]) / totals.sum()
    # nothing is expected of a word that neither has
    ratio = np.divide(observed, expected, out=np.ones_like(observed), where=expected > 0)
    value = 2 * xlogy(observed, ratio).sum((0, 1))
    # rounding may leave a hair below 0
    return np.sign(domain * totals[1] - background * totals[0]) * np.maximum(value, 0)


def kl_contribution(domain: np.ndarray, background: np.ndarray, pseudo_count: float = 0.5) -> np.ndarray:
    """What each word adds to the Kullback-Leibler divergence of the domain from the background (Tomokiyo and Hurst 2003).

    Args:
        domain: ``(n,)``, counts; p is their share.
        background: ``(n,)``, counts of the same words; q is their share once ``pseudo_count`` is added to each.
        pseudo_count: 0.5 is that of Jeffreys' prior.

    Returns:
        ``(n,)`` float64, p ln(p / q) in nats, 0 where the domain lacks the word. The sum is KL(p || q).

    Raises:
        ValueError: a negative count or NaN, different lengths, a corpus without occurrences, or a pseudo-count that is not
            positive.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import kl_contribution
    >>> kl_contribution(np.array([5, 5]), np.array([0, 10])).round(3).tolist()
    [1.199, -0.323]

    ```
    """
    domain, background = _check_pair(domain, background)
    smoothed = background + _check_positive("pseudo_count", pseudo_count)
    p, q = domain / domain.sum(), smoothed / smoothed.sum()
    return p * np.log(np.where(p > 0, p, q) / q)


CONTRASTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "share": smoothed_share,
    "log_odds": log_odds,
    "g2": g2,
    "kl": kl_contribution,
}


def contrast(method: str, domain: np.ndarray, backgrounds: np.ndarray, combine: str = "least") -> np.ndarray:
    """How characteristic words are of a domain against one or more backgrounds.

    Args:
        method: a key of `CONTRASTS`: ``"share"``, ``"log_odds"``, ``"g2"`` or ``"kl"``, each with its defaults.
        domain: ``(n,)``, counts.
        backgrounds: ``(B, n)``, counts of the same words in each background.
        combine: ``"least"``, the least of the scores, so that a word must stand out against each background; or ``"pooled"``,
            the score against the sum of the backgrounds, after each was rescaled to their mean total.

    Returns:
        ``(n,)`` float64, the larger the more characteristic.

    Raises:
        ValueError: an unknown method or combination, no background, or counts that the method does not take.

    Example, words that are common in one of two backgrounds:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import contrast
    >>> backgrounds = np.array([[0, 8, 2], [0, 1, 9]])
    >>> contrast("share", np.array([4, 4, 2]), backgrounds).round(2).tolist()
    [0.69, 0.39, 0.3]
    >>> contrast("share", np.array([4, 4, 2]), backgrounds, combine="pooled").round(2).tolist()
    [0.69, 0.48, 0.38]

    ```
    """
    if method not in CONTRASTS:
        raise ValueError(f"method={method!r} is not known; it must be one of {', '.join(map(repr, CONTRASTS))}")
    if combine not in COMBINATIONS:
        raise ValueError(f"combine={combine!r} is not known; it must be one of {', '.join(map(repr, COMBINATIONS))}")
    backgrounds = np.asarray(backgrounds, np.float64)
    if backgrounds.ndim != 2 or not len(backgrounds):
        raise ValueError(f"backgrounds must be (B, n) with one background at least, got shape {backgrounds.shape}")
    # each is checked on its own: a sum would hide an empty one
    pairs = [_check_pair(domain, background) for background in backgrounds]
    if combine == "least":
        return np.min([CONTRASTS[method](*pair) for pair in pairs], axis=0)
    totals = backgrounds.sum(1, keepdims=True)
    return CONTRASTS[method](domain, (backgrounds / totals).sum(0) * totals.mean())


def false_discovery(values: np.ndarray) -> np.ndarray:
    """q-values of G2: the rate of false discoveries if a word and all with a larger G2 are called the domain's own.

    Benjamini and Hochberg (1995), over one-sided p-values: under the null half of the chi-squared law lies on either side.

    Args:
        values: ``(n,)``, signed, from `g2`.

    Returns:
        ``(n,)`` float64 in [0, 1].

    Raises:
        ValueError: NaN or infinite values, or another shape.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import false_discovery
    >>> false_discovery(np.array([20.0, 3.0, -1.0])).round(4).tolist()
    [0.0, 0.0624, 0.8413]

    ```
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        bad = values[~np.isfinite(values)]
        raise ValueError(f"values must be finite and (n,), got shape {values.shape} with {len(bad)} that are not finite")
    tail = chi2.sf(np.abs(values), 1) / 2
    return false_discovery_control(np.where(values >= 0, tail, 1 - tail))


def c_value(terms: Sequence[str | tuple[Hashable, ...]], counts: np.ndarray, length_offset: int = 0) -> np.ndarray:
    """C-value of candidate terms: length and frequency, less what longer candidates explain (Frantzi, Ananiadou, Mima 2000).

    ``log2(length) (f - t / c)``, where c is the number of longer candidates that contain the term and t the sum of their
    occurrences, each less those within longer candidates still, as in the paper's algorithm and its example. A longer
    candidate counts once, however often the term occurs in it.

    Args:
        terms: n different candidates: strings, whose symbols are characters, or tuples of symbols, e.g. of words.
        counts: ``(n,)``, f, all occurrences, nested ones too.
        length_offset: added to the length. With 0, the paper's, every term of a single symbol has 0; with 1 it has
            ``f - t / c`` (Lossio-Ventura, Jonquet, Roche and Teisseire 2013).

    Returns:
        ``(n,)`` float64 in occurrences times bits; below 0 if longer candidates occur more often than the term, which a
        consistent count rules out.

    Raises:
        ValueError: a term that is empty or there twice, counts of another length, negative or NaN, or a negative offset.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import c_value
    >>> c_value(["支持向量机", "支持向量", "向量"], np.array([30, 32, 90])).round(2).tolist()
    [69.66, 4.0, 74.0]

    ```
    """
    counts = _check_counts("counts", counts)
    if len(counts) != len(terms):
        raise ValueError(f"counts must be one for each of {len(terms)} terms, got {len(counts)}")
    if length_offset < 0:
        raise ValueError(f"length_offset={length_offset} must be 0 or more")
    places = {term: place for place, term in enumerate(terms)}
    if len(places) < len(terms):
        twice = next(term for place, term in enumerate(terms) if places[term] != place)
        raise ValueError(f"term {twice!r} is there twice; add its counts")
    lengths = np.array([len(term) for term in terms], np.int64)
    if not lengths.all():
        raise ValueError(f"term {np.flatnonzero(lengths == 0)[0]} is empty")
    nested, containing = [0.0] * len(terms), [0] * len(terms)
    known_lengths = np.unique(lengths).tolist()
    # from the longest on, so that a term's own nested occurrences are known before it passes on the others
    for place in np.argsort(-lengths, kind="stable").tolist():
        term = terms[place]
        inner = {
            places[part]
            for length in known_lengths
            if length < len(term)
            for begin in range(len(term) - length + 1)
            if (part := term[begin : begin + length]) in places
        }
        free = float(counts[place]) - nested[place]
        for other in inner:
            nested[other] += free
            containing[other] += 1
    return np.log2(lengths + length_offset) * (counts - np.array(nested) / np.maximum(containing, 1))


def burstiness(counts: np.ndarray, document_frequency: np.ndarray, num_documents: int) -> np.ndarray:
    """Residual idf: by how much a word is in fewer documents than at random (Church and Gale 1995, Poisson mixtures).

    ``-ln(df / D) + ln(1 - exp(-f / D))``: the observed inverse document frequency less that of a Poisson law of the same mean.
    Words of a subject come in bursts and are high; words that fall anywhere are near 0.

    Args:
        counts: ``(n,)``, f, occurrences.
        document_frequency: ``(n,)``, df, documents that have the word.
        num_documents: D, documents of the corpus.

    Returns:
        ``(n,)`` float64 in nats (divide by ln 2 for the paper's bits); 0 for a word that does not occur.

    Raises:
        ValueError: negative or NaN counts, different lengths, or a word in more documents than it has occurrences, in more
            than there are, or in none though it occurs.

    Example, 10 occurrences in 10 and in 2 of 100 documents:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.contrast import burstiness
    >>> burstiness(np.array([10, 10]), np.array([10, 2]), 100).round(2).tolist()
    [-0.05, 1.56]

    ```
    """
    counts = _check_counts("counts", counts)
    documents = _check_counts("document_frequency", document_frequency)
    if len(counts) != len(documents):
        raise ValueError(f"counts and document_frequency must be of the same words, got {len(counts)} and {len(documents)}")
    bad = np.flatnonzero((documents > np.minimum(counts, num_documents)) | ((documents == 0) & (counts > 0)))
    if len(bad):
        raise ValueError(
            f"document_frequency={documents[bad[0]]:g} at {bad[0]} must lie between 1 and the word's occurrences, "
            f"{counts[bad[0]]:g}, and the documents, {num_documents}"
        )
    values = np.zeros(len(counts))
    some = counts > 0
    values[some] = np.log(-np.expm1(-counts[some] / num_documents)) - np.log(documents[some] / num_documents)
    return values


__all__ = [
    "CONTRASTS",
    "burstiness",
    "c_value",
    "contrast",
    "false_discovery",
    "g2",
    "kl_contribution",
    "log_odds",
    "smoothed_share",
]
