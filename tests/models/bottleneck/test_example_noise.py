"""Noise of examples: splitmix64 against plain integers and its published numbers, the laws, and what must not matter."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from hfblog.models.bottleneck.example_noise import _mix, keys_of_examples, normal_of_examples, uniform_of_examples

ALL = 2**64 - 1
STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(word: int) -> int:
    """splitmix64's finaliser on an unsigned integer."""
    word = ((word ^ (word >> 30)) * FIRST) & ALL
    word = ((word ^ (word >> 27)) * SECOND) & ALL
    return word ^ (word >> 31)


def unmix(word: int) -> int:
    """Its inverse."""
    word = (word ^ (word >> 31) ^ (word >> 62)) * pow(SECOND, -1, 2**64) & ALL
    word = (word ^ (word >> 27) ^ (word >> 54)) * pow(FIRST, -1, 2**64) & ALL
    return word ^ (word >> 30) ^ (word >> 60)


def signed(word: int) -> int:
    return word - 2**64 if word >> 63 else word


def place(index: int, seed: int) -> int:
    """Word of a place, counted from 0."""
    return mix((index + 1 + (seed << 32)) * STEP & ALL)


def naive_key(values: list[float], is_float: bool) -> int:
    words = [round(value * 2**24) if is_float else value for value in values]
    return sum(mix((word * FIRST + place(index, 0)) & ALL) for index, word in enumerate(words)) & ALL


def naive_uniform(key: int, count: int, seed: int) -> list[float]:
    return [((mix((key + place(index, seed)) & ALL) >> 41) + 0.5) / 2**23 for index in range(count)]


def near_images(count: int = 2000) -> Tensor:
    """Images of 17 levels that differ from one another in one or two pixels."""
    images = torch.full((count, 1, 8, 8), 0.5)
    flat = images.flatten(1)
    for row in range(count):
        flat[row, row % 64] = (row // 64 % 17) / 16
        flat[row, (row + 1) % 64] = (row // (64 * 17)) / 16
    return images


def test_mix_is_splitmix64():
    seed = 1234567
    states = torch.tensor([signed((seed + count * STEP) & ALL) for count in range(1, 6)])
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert _mix(states).tolist() == [signed(word) for word in published]
    words = [0, 1, ALL, 2**63, 2**63 - 1, *(mix(word) for word in range(200))]
    assert _mix(torch.tensor([signed(word) for word in words])).tolist() == [signed(mix(word)) for word in words]
    assert [unmix(mix(word)) for word in words] == words


def test_keys_and_numbers_are_those_of_plain_integers():
    """What an evaluation reports depends on them: they must stay what they are."""
    images, ids = torch.randn(3, 2, 2), torch.tensor([[7, 0, -100], [2**40, 5, 6]])
    keys = keys_of_examples(images)
    assert keys.tolist() == [signed(naive_key(row, True)) for row in images.flatten(1).tolist()]
    assert keys_of_examples(ids).tolist() == [signed(naive_key(row, False)) for row in ids.tolist()]
    found = uniform_of_examples(keys, (2, 3), seed=5)
    assert found.shape == (3, 2, 3) and found.dtype == torch.float32
    assert found.flatten(1).tolist() == [naive_uniform(key % 2**64, 6, 5) for key in keys.tolist()]
    normal = normal_of_examples(keys, (2, 3), seed=5)
    torch.testing.assert_close(normal.double(), torch.special.ndtri(found.double()), rtol=1e-6, atol=1e-7)


def test_uniform_and_normal_numbers_have_their_laws():
    keys = keys_of_examples(near_images())
    uniform = uniform_of_examples(keys, (50,)).double()
    count = uniform.numel()
    assert abs(uniform.mean().item() - 0.5) < 4 * (1 / 12 / count) ** 0.5
    assert abs(uniform.var().item() - 1 / 12) < 4 * (1 / 180 / count) ** 0.5
    assert stats.kstest(uniform.flatten(), "uniform").pvalue > 0.01
    normal = normal_of_examples(keys, (50,)).double()
    assert stats.kstest(normal.flatten(), "norm").pvalue > 0.01
    # of each place over the examples, and of each example over the places: p-values are uniform themselves
    for table in (
        uniform,
        uniform_of_examples(keys[:50], (2000,)).double(),
        uniform_of_examples(keys, (50,), seed=9).double(),
    ):
        for rows in (table, table.T):
            assert stats.kstest([stats.kstest(row, "uniform").pvalue for row in rows[:50]], "uniform").pvalue > 0.001


def test_numbers_stay_inside_even_where_all_bits_are_equal():
    """1 would be an infinite normal number, and 0 too."""
    places = (0, 4)
    for seed in (1, 2):
        for index in places:
            keys = [signed((unmix(word) - place(index, seed)) & ALL) for word in (ALL, 0, ALL << 41 & ALL, ALL >> 23)]
            found = uniform_of_examples(torch.tensor(keys), (5,), seed)[:, index]
            assert found.tolist() == [1 - 2**-24, 2**-24, 1 - 2**-24, 2**-24]
            normal = normal_of_examples(torch.tensor(keys), (5,), seed)[:, index]
            assert torch.isfinite(normal).all() and torch.equal(normal[::2], -normal[1::2]) and normal[0] > 5


def test_examples_places_and_seeds_know_nothing_of_one_another():
    count = 64
    keys = keys_of_examples(near_images(count))
    long = normal_of_examples(keys, (4000,)).double()
    other = normal_of_examples(keys, (4000,), seed=2).double()
    mean = normal_of_examples(keys_of_examples(near_images(4000)), (count,)).double().T
    for first, second in ((long, long), (long, other), (long[:, :-1], long[:, 1:]), (long.square(), other), (mean, mean)):
        found = torch.corrcoef(torch.cat([first, second]))[:count, count:]
        if first is second:
            found = found - torch.eye(count)
        assert found.abs().max() < 5 * 4000**-0.5
    # pairs of neighbours over a grid, which sees more than correlations
    uniform = uniform_of_examples(keys, (4000,))
    for first, second in ((uniform[:, :-1], uniform[:, 1:]), (uniform[:-1], uniform[1:])):
        cells = (first * 16).long() * 16 + (second * 16).long()
        assert stats.chisquare(cells.flatten().bincount(minlength=256).numpy()).pvalue > 0.001


def test_keys_tell_examples_apart():
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 16
    assert len(keys_of_examples(digits).unique()) == len(digits.flatten(1).unique(dim=0)) == 1797
    assert len(keys_of_examples(near_images()).unique()) == len(near_images().flatten(1).unique(dim=0)) > 1000
    constant = torch.linspace(0, 1, 256)[:, None].expand(-1, 10)
    assert len(keys_of_examples(constant).unique()) == 256
    # order counts, and so does the place of a token
    orders = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1], [0, 1, 2, 3], [1, 1, 1, 1]])
    assert len(keys_of_examples(orders).unique()) == 6
    lengths = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert len(keys_of_examples(torch.zeros(3, 3, dtype=torch.long), lengths).unique()) == 3


def test_batch_and_order_do_not_matter():
    images = near_images(40)
    together = normal_of_examples(keys_of_examples(images), (3, 7))
    order = torch.randperm(40)
    assert torch.equal(normal_of_examples(keys_of_examples(images[order]), (3, 7)), together[order])
    alone = [normal_of_examples(keys_of_examples(images[row : row + 1]), (3, 7)) for row in range(40)]
    assert torch.equal(torch.cat(alone), together)
    # the first numbers do not depend on how many follow
    assert torch.equal(normal_of_examples(keys_of_examples(images), (2, 7)), together[:, :2])
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(keys_of_examples(images.to(dtype)), keys_of_examples(images))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_padding_does_not_matter(dtype, left):
    text = torch.tensor([[5, 0, 7, 7]])
    vectors = torch.randn(1, 4, 3)
    expected, of_vectors = keys_of_examples(text), keys_of_examples(vectors)
    assert torch.equal(keys_of_examples(text, torch.ones_like(text).to(dtype)), expected)
    for padding in (1, 2, 5):
        filler = torch.randint(9, (1, padding))
        parts = [filler, text] if left else [text, filler]
        masks = [torch.zeros_like(filler), torch.ones_like(text)]
        mask = torch.cat(masks if left else masks[::-1], 1).to(dtype)
        assert torch.equal(keys_of_examples(torch.cat(parts, 1), mask), expected)
        blank = torch.randn(1, padding, 3)
        padded = torch.cat([blank, vectors] if left else [vectors, blank], 1)
        assert torch.equal(keys_of_examples(padded, mask[..., None].expand_as(padded)), of_vectors)


def test_the_generator_of_torch_is_not_touched():
    state = torch.get_rng_state()
    normal_of_examples(keys_of_examples(torch.rand(2, 3, generator=torch.Generator().manual_seed(0))), (5,))
    assert torch.equal(torch.get_rng_state(), state)
