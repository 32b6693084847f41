"""Losses against formulas written out, their optima against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from hfblog import NCELoss
from hfblog.models.contrastive.nce_loss import LOSS_TYPES

COUNT, OWN = 6, 4


def scores(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "data": draw(COUNT).requires_grad_(),
        "own": draw(COUNT, OWN).requires_grad_(),
        "shared": draw(3 * COUNT).requires_grad_(),
        "data_log_q": draw(COUNT),
        "own_log_q": draw(COUNT, OWN),
        "shared_log_q": draw(3 * COUNT),
        "c": torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    }


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def by_hand(loss_type: str, data, noise, log_q, noise_log_q, c, ratio: float) -> list[float]:
    """One number for each datum, from plain numbers; shared noise is every datum's own."""
    losses = []
    for row, g in enumerate(data):
        of_noise = noise[row] if isinstance(noise[0], list) else noise
        log_q_of_noise = noise_log_q[row] if isinstance(noise[0], list) else noise_log_q
        if loss_type == "nce":
            loss = -log_sigmoid(g - c - log_q[row] - math.log(ratio))
            terms = [-log_sigmoid(-(s - c - q - math.log(ratio))) for s, q in zip(of_noise, log_q_of_noise, strict=True)]
            loss += ratio * sum(terms) / len(terms)
        elif loss_type == "density_ratio":
            loss = -log_sigmoid(g - c) + sum(-log_sigmoid(c - s) for s in of_noise) / len(of_noise)
        elif loss_type == "neg":
            loss = -log_sigmoid(g) + ratio * sum(-log_sigmoid(-s) for s in of_noise) / len(of_noise)
        elif loss_type in ("ranking", "random_softmax"):
            corrected = loss_type == "ranking"
            own = math.exp(g - (log_q[row] if corrected else 0))
            others = [math.exp(s - (q if corrected else 0)) for s, q in zip(of_noise, log_q_of_noise, strict=True)]
            loss = -math.log(own / (own + sum(others)))
        elif loss_type == "conditional":
            loss = sum(-log_sigmoid(g - s) for s in of_noise) / len(of_noise)
        else:
            loss = math.log(sum(math.exp(s - q) for s, q in zip(of_noise, log_q_of_noise, strict=True))) - g
        losses.append(loss)
    return losses


@pytest.mark.parametrize("sharing", ["own", "shared"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_values_and_gradients_against_plain_numbers(loss_type, sharing):
    if (loss_type, sharing) == ("conditional", "shared"):
        pytest.skip("noise around a datum is its own")
    s = scores()
    arguments = (s["data"], s[sharing], s["data_log_q"], s[f"{sharing}_log_q"], s["c"])
    ratio = {"own": OWN, "shared": 3}[sharing]
    expected = by_hand(loss_type, *(value.tolist() for value in arguments), ratio)
    losses = NCELoss(loss_type)(*arguments, reduction="none")
    torch.testing.assert_close(losses.detach(), torch.tensor(expected, dtype=torch.float64))
    assert NCELoss(loss_type)(*arguments).item() == pytest.approx(sum(expected) / COUNT)
    assert NCELoss(loss_type)(*arguments, reduction="sum").item() == pytest.approx(sum(expected))

    # gradients by differences of the same plain numbers
    names = ["data", sharing] + (["c"] if loss_type in ("nce", "density_ratio") else [])
    gradients = torch.autograd.grad(losses.sum(), [s[name] for name in names])
    step = 1e-6
    for name, gradient in zip(names, gradients, strict=True):
        place = {"data": (2,), "own": (2, 1), "shared": (5,), "c": ()}[name]
        ends = []
        for sign in (1, -1):
            moved = {key: value.detach().clone() for key, value in s.items()}
            moved[name][place] += sign * step
            values = (moved["data"], moved[sharing], moved["data_log_q"], moved[f"{sharing}_log_q"], moved["c"])
            ends.append(sum(by_hand(loss_type, *(value.tolist() for value in values), ratio)))
        assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("loss_type", ["nce", "density_ratio"])
def test_a_constant_for_each_context(loss_type):
    s = scores()
    c = torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses = NCELoss(loss_type)(s["data"], s["own"], s["data_log_q"], s["own_log_q"], c, reduction="none")
    for row in range(COUNT):
        part = slice(row, row + 1)
        alone = NCELoss(loss_type)(s["data"][part], s["own"][part], s["data_log_q"][part], s["own_log_q"][part], c[row])
        torch.testing.assert_close(losses[row], alone)


def test_the_ratio_may_be_stated():
    s = scores()
    arguments = (s["data"], s["own"], s["data_log_q"], s["own_log_q"])
    expected = by_hand("nce", *(value.tolist() for value in arguments), 0.0, 0.5)
    assert NCELoss("nce", noise_ratio=0.5)(*arguments).item() == pytest.approx(sum(expected) / COUNT)
    assert repr(NCELoss("nce", 0.5)) == "NCELoss(loss_type='nce', noise_ratio=0.5)"


def test_random_softmax_is_ranking_where_noise_is_uniform():
    s = scores()
    uniform = torch.full((), -math.log(50.0), dtype=torch.float64)
    ranking = NCELoss("ranking")(s["data"], s["own"], uniform, uniform, reduction="none")
    torch.testing.assert_close(NCELoss("random_softmax")(s["data"], s["own"], reduction="none"), ranking)


def descend(loss, parameters: list[torch.Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


SIZE = 8


def joint_law() -> torch.Tensor:
    """A law over pairs of words, ``(SIZE, SIZE)``."""
    draws = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    return draws / draws.sum()


@pytest.mark.parametrize("negatives", [1, 5])
@pytest.mark.parametrize("power", [1.0, 0.75])
def test_negative_sampling_learns_shifted_mutual_information(negatives, power):
    """Equation 14 of the article, and what it leaves out: -log k, and noise by a power of the counts."""
    joint = joint_law()
    first, second = joint.sum(1), joint.sum(0)
    noise = second**power / (second**power).sum()
    table = torch.zeros(SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    loss = NCELoss("neg", noise_ratio=negatives)

    def expected_loss():
        # every pair as a datum; every word as its noise, by a score whose softplus is weighted
        total = 0.0
        for i in range(SIZE):
            for word in range(SIZE):
                # data at rate P(i, word), noise at rate P(i) q(word): the two halves of one loss
                half = loss(table[i, word : word + 1], torch.full((1,), -1e4, dtype=torch.float64))
                other = loss(torch.full((1,), 1e4, dtype=torch.float64), table[i, word : word + 1])
                total = total + joint[i, word] * half + first[i] * noise[word] * other
        return total

    descend(expected_loss, [table])
    expected = (joint / (first[:, None] * noise[None])).log() - math.log(negatives)
    torch.testing.assert_close(table.detach(), expected, rtol=0, atol=1e-3)


def test_the_textbook_loss_learns_the_law_and_its_constant():
    """With log q and log nu in it, the same expectation has log p + c as its optimum, whatever the noise."""
    law, noise = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    energies = law.double().log() + 1.7  # an energy with log Z = 1.7
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ratio = 3.0

    def expected_loss():
        data = NCELoss("nce", ratio)(
            energies, torch.full((1,), -1e4, dtype=torch.float64), noise.log().double(), 0.0, c, "none"
        )
        far = torch.full((4,), 1e4, dtype=torch.float64)
        of_noise = NCELoss("nce", ratio)(far, energies[:, None], 0.0, noise.log().double()[:, None], c, "none")
        return (law.double() * data).sum() + (noise.double() * of_noise).sum()

    descend(expected_loss, [c])
    assert c.item() == pytest.approx(1.7, abs=1e-6)


def test_the_gradient_tends_to_that_of_maximum_likelihood():
    """T5: fifty classes, linear scores; exact expectations over the noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 10, generator=generator, dtype=torch.float64)
    weights = 0.3 * torch.randn(10, generator=generator, dtype=torch.float64)
    law = (features @ torch.randn(10, generator=generator, dtype=torch.float64)).softmax(0)
    noise = torch.rand(50, generator=generator, dtype=torch.float64).softmax(0)

    def gradient(loss) -> torch.Tensor:
        w = weights.clone().requires_grad_()
        loss(features @ w).backward()
        return w.grad

    exact = gradient(lambda g: (law * NCELoss("full")(g, g, reduction="none")).sum())

    def nce(ratio):
        def loss(g):
            c = g.logsumexp(0).detach()
            data = NCELoss("nce", ratio)(g, torch.full((1,), -1e6, dtype=torch.float64), noise.log(), 0.0, c, "none")
            far = torch.full((50,), 1e6, dtype=torch.float64)
            of_noise = NCELoss("nce", ratio)(far, g[:, None], 0.0, noise.log()[:, None], c, "none")
            return (law * data).sum() + (noise * of_noise).sum()

        return gradient(loss)

    cosines = [torch.cosine_similarity(exact, nce(ratio), dim=0).item() for ratio in (1, 10, 100, 1000)]
    assert cosines == sorted(cosines) and cosines[-1] > 0.99
    torch.testing.assert_close(nce(1e5), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_extreme_scores_stay_finite(loss_type, dtype):
    data = torch.tensor([1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
    noise = torch.tensor([[1e4, -1e4], [1e4, 1e4], [-1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = NCELoss(loss_type)(data, noise, torch.full((3,), -20.0), torch.full((3, 2), -20.0))
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(data.grad).all() and torch.isfinite(noise.grad).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NCELoss("hinge"), "loss_type='hinge' is not known; it must be one of 'nce'"),
        (lambda: NCELoss("nce", noise_ratio=0), "noise_ratio=0 must be positive"),
        (lambda: NCELoss("nce", noise_ratio=-1.0), "noise_ratio=-1.0 must be positive"),
        (lambda: NCELoss()(torch.zeros(3, 1), torch.zeros(3, 2)), r"got \(3, 1\) and \(3, 2\)"),
        (lambda: NCELoss()(torch.zeros(3), torch.zeros(0)), r"noise_scores \(N, k\) or \(M,\), got \(3,\) and \(0,\)"),
        (lambda: NCELoss()(torch.zeros(3), torch.zeros(2, 4)), r"noise_scores \(2, 4\) must have a row for each of 3 data"),
        (lambda: NCELoss("conditional")(torch.zeros(3), torch.zeros(6)), "needs noise around each datum"),
        (lambda: NCELoss()(torch.zeros(3), torch.zeros(6), log_partition=torch.zeros(3)), "needs noise for each datum"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
