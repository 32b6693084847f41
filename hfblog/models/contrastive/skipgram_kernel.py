"""Negative sampling over a corpus in compiled loops, for the CPU: word2vec's skip-gram with noise shared by a window.

Mikolov et al. 2013, arXiv:1310.4546; shared noise: Ji et al. 2016, arXiv:1604.04661. Threads write into the same vectors
without locks (Recht et al. 2011, arXiv:1106.5730): one thread gives the same result for the same seed, several do not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from transformers.utils.logging import tqdm

try:  # in a try block: transformers demands every other import of a repository's code, and this may be missing
    import numba
except ImportError as error:
    raise ImportError("the compiled loops need numba: pip install numba") from error

from .xorshift import random_bits, random_state

# Beyond it the sigmoid is 0 or 1 to all that matters.
LARGEST_LOGIT = 8.0
TABLE_SIZE = 4096
SIGMOIDS = (1 / (1 + np.exp(-((np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE * 2 - 1) * LARGEST_LOGIT))).astype(np.float32)


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _uniform(state):
    return np.float32(random_bits(state) * (1.0 / 9007199254740992.0))


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _train(
    tokens, starts, first, last, v, u, kept, noise_keep, noise_alias, sigmoids, window, whole, k, rates, counter, total, seed
):
    """Sentences ``first`` to ``last``; ``counter[0]`` holds the words that all threads have seen."""
    size = v.shape[1]
    vocabulary = np.uint64(v.shape[0])
    state = random_state(seed)
    for _ in range(8):
        random_bits(state)
    longest = 1
    for s in range(first, last):
        longest = max(longest, starts[s + 1] - starts[s])
    sentence = np.empty(longest, np.int64)
    # Outs come in threes and contexts in fours, filled up with steps of 0: what a pass loads serves all of them.
    num_outs, num_contexts = 3 * ((k + 3) // 3), 4 * ((2 * window + 3) // 4)
    outs = np.empty(num_outs, np.int64)
    contexts = np.empty(num_contexts, np.int64)
    steps = np.zeros((num_contexts, num_outs), np.float32)
    of_outs = np.empty((num_outs, size), np.float32)
    scale = np.float32(TABLE_SIZE / (2 * LARGEST_LOGIT))
    limit = np.float32(LARGEST_LOGIT)
    for s in range(first, last):
        begin, end = starts[s], starts[s + 1]
        count = 0
        for place in range(begin, end):
            word = tokens[place]
            if kept[word] >= 1 or _uniform(state) < kept[word]:
                sentence[count] = word
                count += 1
        counter[0] += end - begin
        rate = np.float32(rates[0] + (rates[1] - rates[0]) * min(1.0, counter[0] / total))
        for centre in range(count):
            reach = window if whole else 1 + np.int64(random_bits(state) % np.uint64(window))
            low, high = max(0, centre - reach), min(count, centre + reach + 1)
            if high - low < 2:
                continue
            near = 0
            for place in range(low, high):
                if place != centre:
                    contexts[near] = sentence[place]
                    near += 1
            outs[0] = sentence[centre]
            drawn = 1
            for _ in range(k):
                word = np.int64(random_bits(state) % vocabulary)
                if _uniform(state) >= noise_keep[word]:
                    word = noise_alias[word]
                if word != outs[0]:
                    outs[drawn] = word
                    drawn += 1
            for j in range(drawn, num_outs):
                outs[j] = outs[0]
            for c in range(near, num_contexts):
                contexts[c] = contexts[0]
            # steps of all pairs, from the vectors as they are
            for c in range(near):
                own = v[contexts[c]]
                for j in range(0, drawn, 3):
                    one, two, three = u[outs[j]], u[outs[j + 1]], u[outs[j + 2]]
                    first_logit, second_logit, third_logit = np.float32(0), np.float32(0), np.float32(0)
                    for t in range(size):
                        number = own[t]
                        first_logit += number * one[t]
                        second_logit += number * two[t]
                        third_logit += number * three[t]
                    for place in range(3):
                        logit = first_logit if place == 0 else (second_logit if place == 1 else third_logit)
                        if logit >= limit:
                            chance = np.float32(1)
                        elif logit <= -limit:
                            chance = np.float32(0)
                        else:
                            chance = sigmoids[np.int64((logit + limit) * scale)]
                        target = np.float32(1) if j + place == 0 else np.float32(0)
                        steps[c, j + place] = (target - chance) * rate if j + place < drawn else np.float32(0)
            for c in range(near, num_contexts):
                for j in range(num_outs):
                    steps[c, j] = 0
            # what the outs get from the contexts, before these move
            for j in range(drawn):
                gradient = of_outs[j]
                for t in range(size):
                    gradient[t] = 0
                for c in range(0, near, 4):
                    one, two, three, four = v[contexts[c]], v[contexts[c + 1]], v[contexts[c + 2]], v[contexts[c + 3]]
                    w1, w2, w3, w4 = steps[c, j], steps[c + 1, j], steps[c + 2, j], steps[c + 3, j]
                    for t in range(size):
                        gradient[t] += w1 * one[t] + w2 * two[t] + w3 * three[t] + w4 * four[t]
            for c in range(near):
                own = v[contexts[c]]
                for j in range(0, drawn, 3):
                    one, two, three = u[outs[j]], u[outs[j + 1]], u[outs[j + 2]]
                    w1, w2, w3 = steps[c, j], steps[c, j + 1], steps[c, j + 2]
                    for t in range(size):
                        own[t] += w1 * one[t] + w2 * two[t] + w3 * three[t]
            for j in range(drawn):
                other, gradient = u[outs[j]], of_outs[j]
                for t in range(size):
                    other[t] += gradient[t]


def train_skipgram(
    tokens: np.ndarray,
    starts: np.ndarray,
    vectors: np.ndarray,
    context_vectors: np.ndarray,
    kept: np.ndarray,
    noise_keep: np.ndarray,
    noise_alias: np.ndarray,
    *,
    window: int | None = 5,
    num_noise: int = 5,
    epochs: int = 5,
    learning_rate: float = 0.025,
    min_learning_rate: float = 1e-4,
    threads: int = 1,
    seed: int = 0,
    first_epoch: int = 0,
    on_epoch_end: Callable[[int], None] | None = None,
) -> None:
    """Move ``vectors`` and ``context_vectors`` in place.

    Args:
        tokens: ``(words,)`` int32, all sentences one after the other.
        starts: ``(sentences + 1,)`` int64, where each begins, and the end.
        vectors, context_vectors: ``(V, d)`` float32, contiguous.
        kept: ``(V,)`` float32, chance that an occurrence of a word is kept.
        noise_keep, noise_alias: `alias_table` of the noise, float32 and int64.
        window: most places between two words of a pair; None for all pairs of a sentence.
        num_noise: k.
        epochs: passes over the sentences; the learning rate falls linearly over all of them.
        learning_rate, min_learning_rate: at the start and at the end.
        threads: how many.
        seed: of subsampling, windows and noise.
        first_epoch: passes that lie behind it.
        on_epoch_end: is told how many passes are done.
    """
    sentences = len(starts) - 1
    # parts of as many words each
    bounds = np.searchsorted(starts, np.linspace(0, starts[-1], threads + 1)[1:-1])
    bounds = np.concatenate([[0], bounds, [sentences]]).astype(np.int64)
    counter = np.full(1, first_epoch * int(starts[-1]), np.int64)
    total = max(1, int(starts[-1]) * epochs)
    rates = np.array([learning_rate, min_learning_rate])
    widest = int(np.diff(starts).max(initial=1)) if window is None else window

    def part(thread: int, epoch: int) -> None:
        _train(
            tokens,
            starts,
            bounds[thread],
            bounds[thread + 1],
            vectors,
            context_vectors,
            kept,
            noise_keep,
            noise_alias,
            SIGMOIDS,
            widest,
            window is None,
            num_noise,
            rates,
            counter,
            total,
            seed * 1_000_003 + epoch * 1009 + thread,
        )

    shown = int(counter[0])
    bar = tqdm(total=total, initial=shown, unit="word", unit_scale=True, desc="Skip-gram", mininterval=1)
    with bar, ThreadPoolExecutor(threads) as pool:
        for epoch in range(first_epoch, epochs):
            running = [pool.submit(part, thread, epoch) for thread in range(threads)]
            left = True
            while left:
                left = wait(running, timeout=1).not_done
                bar.update(int(counter[0]) - shown)
                shown = int(counter[0])
            for future in running:
                future.result()
            if on_epoch_end is not None:
                on_epoch_end(epoch + 1)


def flatten_sequences(sequences: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids as ``(items, starts)``, int32 and int64; that pair is checked and passes.

    Raises:
        ValueError: no items, or ids outside the vocabulary.
    """
    if isinstance(sequences, tuple) and len(sequences) == 2 and isinstance(sequences[0], np.ndarray):
        items, starts = sequences
        items, starts = np.ascontiguousarray(items, np.int32), np.ascontiguousarray(starts, np.int64)
    else:
        rows = [np.asarray(row, dtype=np.int32) for row in sequences]
        items = np.concatenate(rows) if rows else np.empty(0, np.int32)
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    if not len(items):
        raise ValueError("the corpus is empty")
    if items.min() < 0 or items.max() >= vocab_size:
        raise ValueError(f"item ids must lie in [0, {vocab_size}), but range from {items.min()} to {items.max()}")
    return items, starts


__all__ = ["flatten_sequences", "train_skipgram"]
