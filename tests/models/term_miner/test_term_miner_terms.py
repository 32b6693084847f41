"""Contrast, growth, rules."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, chi2_contingency

from hfblog import TermRules, contrast_of, grow, similarity_threshold, smoothed_share
from hfblog.models.term_miner.contrast_scores import CONTRASTS, burstiness, false_discovery, g2, log_odds


def test_share_by_hand_and_by_scale():
    domain, background = np.array([8, 4, 0, 4]), np.array([0, 4, 8, 4])
    share = smoothed_share(domain, background)
    np.testing.assert_allclose(share, [(8 + 0.5 * 8) / 16, 0.5, 0.25, 0.5])
    np.testing.assert_allclose(smoothed_share(domain, 7 * background), share, rtol=1e-12)
    np.testing.assert_allclose(smoothed_share(5 * domain, background), share, rtol=1e-12)


def test_words_of_the_domain_alone_come_first():
    # as published, on words that both have, the first would have come last
    domain, background = np.array([50, 50, 10]), np.array([0, 10, 90])
    for method in CONTRASTS:
        scores = contrast_of(method, domain, background[None])
        assert np.isfinite(scores).all() and min(scores[:2]) > scores[2], method
        # a z-score trusts the word that was seen more often in all
        assert scores[0] > scores[1] or method == "log_odds"


def test_g2_is_that_of_the_contingency_table():
    domain, background = np.array([30, 5, 0, 65]), np.array([10, 20, 7, 163])
    for place, value in enumerate(g2(domain, background)):
        rows = [[domain[place], background[place]], [100 - domain[place], 200 - background[place]]]
        expected = chi2_contingency(rows, correction=False, lambda_="log-likelihood").statistic
        assert abs(value) == pytest.approx(expected, rel=1e-10)
        assert (value > 0) == (domain[place] / 100 > background[place] / 200)


def test_log_odds_are_antisymmetric():
    domain, background = np.array([30, 5, 1, 64]), np.array([3, 50, 1, 46])
    np.testing.assert_allclose(log_odds(domain, background), -log_odds(background, domain), rtol=1e-12)


def test_several_backgrounds():
    domain, backgrounds = np.array([10, 10, 10]), np.array([[0, 20, 10], [20, 0, 10]])
    least = contrast_of("share", domain, backgrounds)
    np.testing.assert_allclose(least, np.min([smoothed_share(domain, row) for row in backgrounds], axis=0))
    pooled = contrast_of("share", domain, backgrounds, "pooled")
    np.testing.assert_allclose(pooled, smoothed_share(domain, backgrounds.sum(0)))


def test_false_discovery_by_hand():
    values = np.array([12.0, 1.0, -3.0, 5.0])
    chances = np.where(values > 0, chi2.sf(abs(values), 1) / 2, 1 - chi2.sf(abs(values), 1) / 2)
    q = false_discovery(values)
    np.testing.assert_allclose(q[0], 4 * chances[0], rtol=1e-9)
    np.testing.assert_allclose(q[3], 2 * chances[3], rtol=1e-9)
    np.testing.assert_allclose(q[2], chances[2], rtol=1e-9)


def test_burstiness_of_words_that_fall_at_random_is_nothing():
    generator = np.random.default_rng(0)
    at_random = generator.integers(1000, size=5000)
    assert burstiness(np.array([5000]), np.array([len(set(at_random))]), 1000)[0] == pytest.approx(0, abs=0.01)
    assert burstiness(np.array([0]), np.array([0]), 1000)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("guess", [1], [[1]]), "contrast='guess' must be one of 'share'"),
        (("share", [1], [[1]], "mean"), "combine='mean' must be one of"),
        (("share", [1], np.empty((0, 1))), "at least one background"),
        (("share", [1, -1], [[1, 1]]), "not negative"),
        (("share", [1, np.nan], [[1, 1]]), "must be finite"),
        (("share", [1, 2], [[1]]), r"must be \(n,\) alike"),
        (("share", [0, 0], [[1, 1]]), "all 0"),
    ],
)
def test_wrong_counts(arguments, message):
    with pytest.raises(ValueError, match=message):
        contrast_of(*arguments)


def naive_growth(vectors, seeds, centers, negatives, low, high, decay):
    lean = vectors[centers].mean(0) - vectors[negatives].mean(0)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    depths = dict.fromkeys(seeds, 0)
    level, depth = list(seeds), 0
    while level:
        limit = low + (high - low) * (1 - np.exp(-decay * depth))
        best = {}
        for parent in level:
            query = vectors[parent] + lean
            cosines = units @ (query / np.linalg.norm(query))
            for row in range(len(vectors)):
                if row not in depths and cosines[row] > limit and cosines[row] > best.get(row, (-1,))[0]:
                    best[row] = (cosines[row], parent)
        depth += 1
        level = sorted(best, key=lambda row: (level.index(best[row][1]), -best[row][0], row))
        depths |= dict.fromkeys(level, depth)
    return depths


def test_growth_is_that_of_the_definition():
    vectors = np.random.default_rng(3).normal(size=(80, 6)).astype(np.float32)
    grown = grow(vectors, [1, 4], centers=[2, 3], negatives=[7], min_similarity=0.6, decay=0.2, batch_size=7)
    expected = naive_growth(vectors.astype(float), [1, 4], [2, 3], [7], 0.6, 1.0, 0.2)
    assert dict(zip(grown.indices.tolist(), grown.depths.tolist(), strict=True)) == expected
    assert list(grown.indices) == list(expected) and len(expected) > 10
    assert (grown.similarities[2:] > grown.thresholds[2:]).all()
    assert sum(row["count"] for row in grown.by_depth()) == len(grown)


def clusters(seed: int = 0):
    """Eight groups of 150, and between one and the next a chain of bridges, which belong to none."""
    generator = np.random.default_rng(seed)
    centres = np.linalg.qr(generator.normal(size=(64, 8)))[0].T
    groups = np.repeat(np.arange(8), 150)
    steps = np.linspace(0, 1, 6)[1:-1] * np.pi / 2
    bridges = np.stack([np.cos(step) * centres[i] + np.sin(step) * centres[i + 1] for i in range(7) for step in steps])
    points = np.concatenate([centres[groups], bridges])
    return points + 0.05 * generator.normal(size=points.shape), groups


def test_growth_stays_in_its_cluster():
    vectors, groups = clusters()
    for group in range(8):
        own = np.flatnonzero(groups == group)
        found = grow(vectors, own[:3], decay=0.9).indices
        inside = np.isin(found, own)
        assert inside.sum() >= 0.95 * len(own) and inside.mean() >= 0.95
        assert set(groups[found[found < len(groups)]]) == {group}


def test_without_decay_one_chain_leads_everywhere():
    vectors, groups = clusters()
    found = grow(vectors, [0], decay=0.0).indices
    assert set(groups[found[found < len(groups)]]) == set(range(8))


def test_threshold_and_limits():
    assert similarity_threshold(0) == 0.6
    assert similarity_threshold(3, 0.5, 0.9, 0.25) == pytest.approx(0.5 + 0.4 * (1 - np.exp(-0.75)), abs=1e-15)
    vectors, _ = clusters()
    assert len(grow(vectors, [0], max_terms=5)) == 5
    assert grow(vectors, [0], decay=0.0, max_depth=2).depths.max() == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [9]}, "seeds must lie between 0 and 3"),
        ({"seeds": [0], "negatives": [0]}, "seeds and negatives at once"),
        ({"seeds": [0], "min_similarity": 1.0, "max_similarity": 0.5}, "must not exceed"),
        ({"seeds": [0], "vectors": np.full((4, 2), np.nan)}, "must be finite"),
    ],
)
def test_wrong_growth(settings, message):
    with pytest.raises(ValueError, match=message):
        grow(**({"vectors": np.eye(4)} | settings))


def test_rules():
    rules = TermRules(forbidden=["合同"], allowed=["所有权人"])
    assert [
        term for term in ("变压器", "一种", "每年", "合同", "所有权人", "哈哈", "公司的", "IBM") if rules.accepts(term)
    ] == [
        "变压器",
        "所有权人",
    ]
    assert rules.broken("每年") == "begins with '每'"
    with pytest.raises(ValueError, match="unknown rules 'contain'; there are"):
        TermRules.of({"contain": ["的"]})
    with pytest.raises(ValueError, match="rules='french' must be settings, or one of 'chinese', 'english'"):
        TermRules.of("french")
    english = TermRules.of("english")
    assert english.broken("of the nation") == "begins or ends with the word 'of'"
    assert [term for term in ("interest rates", "the treasury", "1 to 5", "x y", "ofsted") if english.accepts(term)] == [
        "interest rates",
        "ofsted",
    ]
    with pytest.raises(ValueError, match="must be a list of strings"):
        TermRules(starts="每各")
    with pytest.raises(ValueError, match="no regular expression"):
        TermRules(require="(")
