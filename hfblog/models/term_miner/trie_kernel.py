"""A lexicon as a trie of symbols, in compiled loops: chains of n-grams, the best segmentation, counts of words.

A node's child by a symbol is found in one hash table of all nodes; the root's children lie in a plain array.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

try:  # in a try block: transformers demands every other import of a repository's code, and this may be missing
    import numba
except ImportError as error:
    raise ImportError("the compiled lexicon needs numba: pip install numba") from error


class Trie(NamedTuple):
    """Words over symbols of 16 bits.

    Attributes:
        first: ``(65536,)`` int32, the root's children.
        keys, children: the other nodes' children, a hash table; 0 and -1 where it is empty.
        words: ``(nodes,)`` int32, the word that ends at a node, or -1.
    """

    first: np.ndarray
    keys: np.ndarray
    children: np.ndarray
    words: np.ndarray


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _place(key, mask):
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def child(node, symbol, keys, children):
    """The node after a symbol, or -1."""
    mask = len(keys) - 1
    key = (np.uint64(node + 1) << np.uint64(16)) | np.uint64(symbol)
    place = _place(key, mask)
    while keys[place] != 0:
        if keys[place] == key:
            return children[place]
        place = (place + 1) & mask
    return np.int32(-1)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _fill(symbols, ends, first, keys, children, words):
    mask = len(keys) - 1
    nodes = 0
    begin = 0
    for word in range(len(ends)):
        end = ends[word]
        node = first[symbols[begin]]
        if node < 0:
            node = np.int32(nodes)
            first[symbols[begin]] = node
            nodes += 1
        for position in range(begin + 1, end):
            key = (np.uint64(node + 1) << np.uint64(16)) | np.uint64(symbols[position])
            place = _place(key, mask)
            while keys[place] != 0 and keys[place] != key:
                place = (place + 1) & mask
            if keys[place] == 0:
                keys[place] = key
                children[place] = nodes
                nodes += 1
            node = children[place]
        words[node] = word
        begin = end
    return nodes


def build_trie(symbols: np.ndarray, ends: np.ndarray) -> Trie:
    """The trie of words.

    Args:
        symbols: ``(all,)`` uint16, of all words one after the other; none is 0.
        ends: ``(n,)`` int64, where each word ends.
    """
    room = 16
    while room < 2 * len(symbols):
        room *= 2
    trie = Trie(
        np.full(2**16, -1, np.int32),
        np.zeros(room, np.uint64),
        np.full(room, -1, np.int32),
        np.full(len(symbols) + 1, -1, np.int32),
    )
    nodes = _fill(symbols, ends, *trie)
    return trie._replace(words=trie.words[:nodes].copy())


@numba.njit(cache=True, nogil=True, boundscheck=False)
def mark_chains(symbols, first, keys, children, words, joined):
    """``joined[i] = 1`` where a word of the trie spans the gap before symbol i."""
    length = len(symbols)
    for begin in range(length):
        if symbols[begin] == 0:
            continue
        node = first[symbols[begin]]
        position = begin + 1
        while node >= 0 and position < length and symbols[position] != 0:
            node = child(node, symbols[position], keys, children)
            position += 1
            if node >= 0 and words[node] >= 0:
                for gap in range(begin + 1, position):
                    joined[gap] = 1


@numba.njit(cache=True, nogil=True, boundscheck=False)
def count_pieces(symbols, joined, first, keys, children, words, order, counts, long_begins, long_ends):
    """Counts of the pieces between gaps that are not joined.

    A piece of up to ``order`` symbols that is in the trie counts at its word. A longer one whose every stretch of ``order``
    symbols is in the trie is written to ``long_begins`` and ``long_ends``; how many, is given back.
    """
    length = len(symbols)
    found = 0
    begin = 0
    while begin < length:
        if symbols[begin] == 0:
            begin += 1
            continue
        end = begin + 1
        while end < length and symbols[end] != 0 and joined[end]:
            end += 1
        size = end - begin
        whole = True
        for start in range(begin, max(begin + 1, end - order + 1)):
            node = first[symbols[start]]
            for position in range(start + 1, min(start + order, end)):
                if node < 0:
                    break
                node = child(node, symbols[position], keys, children)
            if node < 0 or words[node] < 0:
                whole = False
                break
            if size <= order:
                counts[words[node]] += 1
        if whole and size > order:
            long_begins[found] = begin
            long_ends[found] = end
            found += 1
        begin = end
    return found


@numba.njit(cache=True, nogil=True, boundscheck=False)
def segment(symbols, first, keys, children, words, scores, unknown, ends):
    """The segmentation of the highest sum of scores: ``ends[i] = 1`` where a word, or an unknown symbol, ends before i.

    ``ends`` ``(n + 1,)`` holds zeros.
    """
    length = len(symbols)
    room = 256
    best = np.empty(room + 1, np.float64)
    back = np.empty(room + 1, np.int64)
    begin = 0
    while begin < length:
        if symbols[begin] == 0:
            begin += 1
            continue
        end = begin + 1
        while end < length and symbols[end] != 0:
            end += 1
        size = end - begin
        if size > room:
            room = 2 * size
            best = np.empty(room + 1, np.float64)
            back = np.empty(room + 1, np.int64)
        best[0] = 0.0
        for place in range(1, size + 1):
            best[place] = -np.inf
        for place in range(size):
            so_far = best[place]
            node = first[symbols[begin + place]]
            if node < 0 or words[node] < 0:
                score = so_far + unknown
                if score > best[place + 1]:
                    best[place + 1] = score
                    back[place + 1] = place
            next_place = place
            while node >= 0:
                next_place += 1
                word = words[node]
                if word >= 0:
                    score = so_far + scores[word]
                    if score > best[next_place]:
                        best[next_place] = score
                        back[next_place] = place
                if next_place == size:
                    break
                node = child(node, symbols[begin + next_place], keys, children)
        place = size
        while place > 0:
            ends[begin + place] = 1
            place = back[place]
        begin = end


@numba.njit(cache=True, nogil=True, boundscheck=False)
def count_words(symbols, starts, ends, first, keys, children, words, counts, documents, last_document):
    """Counts of the words between ``ends``, and in how many documents each occurs; ``last_document`` starts at -1."""
    document = 0
    length = len(symbols)
    begin = 0
    while begin < length:
        if symbols[begin] == 0:
            begin += 1
            continue
        while document + 1 < len(starts) and starts[document + 1] <= begin:
            document += 1
        node = first[symbols[begin]]
        end = begin + 1
        while end < length and symbols[end] != 0 and not ends[end]:
            if node >= 0:
                node = child(node, symbols[end], keys, children)
            end += 1
        if node >= 0 and words[node] >= 0:
            word = words[node]
            counts[word] += 1
            if last_document[word] != document:
                last_document[word] = document
                documents[word] += 1
        begin = end


@numba.njit(cache=True, nogil=True, boundscheck=False)
def number_words(symbols, starts, ends, first, keys, children, words, numbers, out, out_starts):
    """One number for every word between ``ends``, ``numbers[word]``, 0 for unknown ones and breaks; gives back how many."""
    length = len(symbols)
    document = 0
    size = 0
    begin = 0
    while begin < length:
        while document < len(starts) and starts[document] <= begin:
            out_starts[document] = size
            document += 1
        if symbols[begin] == 0:
            out[size] = 0
            size += 1
            begin += 1
            continue
        node = first[symbols[begin]]
        end = begin + 1
        while end < length and symbols[end] != 0 and not ends[end]:
            if node >= 0:
                node = child(node, symbols[end], keys, children)
            end += 1
        out[size] = numbers[words[node]] if node >= 0 and words[node] >= 0 else 0
        size += 1
        begin = end
    while document < len(starts):
        out_starts[document] = size
        document += 1
    return size


@numba.njit(cache=True, nogil=True, boundscheck=False)
def count_occurrences(symbols, starts, first, keys, children, words, counts, documents, last_document):
    """Counts of all occurrences of every word, those within other words, too, and in how many documents it occurs."""
    document = 0
    length = len(symbols)
    for begin in range(length):
        if symbols[begin] == 0:
            continue
        while document + 1 < len(starts) and starts[document + 1] <= begin:
            document += 1
        node = first[symbols[begin]]
        position = begin
        while node >= 0:
            word = words[node]
            if word >= 0:
                counts[word] += 1
                if last_document[word] != document:
                    last_document[word] = document
                    documents[word] += 1
            position += 1
            if position == length or symbols[position] == 0:
                break
            node = child(node, symbols[position], keys, children)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def occurrences_of_first(symbols, first, keys, children, words, num_words):
    """Occurrences of the first ``num_words`` words, ``(3, n)``: the word, its left and its right neighbour."""
    length = len(symbols)
    found = np.empty((3, 1024), np.int64)
    size = 0
    for begin in range(length):
        if symbols[begin] == 0:
            continue
        node = first[symbols[begin]]
        position = begin
        while node >= 0:
            word = words[node]
            if 0 <= word < num_words:
                if size == found.shape[1]:
                    larger = np.empty((3, 2 * size), np.int64)
                    larger[:, :size] = found
                    found = larger
                found[0, size] = word
                found[1, size] = symbols[begin - 1] if begin > 0 else 0
                found[2, size] = symbols[position + 1] if position + 1 < length else 0
                size += 1
            position += 1
            if position == length or symbols[position] == 0:
                break
            node = child(node, symbols[position], keys, children)
    return found[:, :size]


@numba.njit(cache=True, nogil=True, boundscheck=False)
def expected_words(symbols, first, keys, children, words, scores, unknown, expected):
    """Adds to ``expected`` how often each word is expected, by forward and backward sums over all segmentations."""
    length = len(symbols)
    room = 256
    ahead = np.empty(room + 1, np.float64)
    behind = np.empty(room + 1, np.float64)
    begin = 0
    while begin < length:
        if symbols[begin] == 0:
            begin += 1
            continue
        end = begin + 1
        while end < length and symbols[end] != 0:
            end += 1
        size = end - begin
        if size > room:
            room = 2 * size
            ahead = np.empty(room + 1, np.float64)
            behind = np.empty(room + 1, np.float64)
        # logarithms of the sums over the segmentations of what lies before a gap, and of what lies behind
        for place in range(size + 1):
            ahead[place] = -np.inf
        ahead[0] = 0.0
        for way in range(2):
            for step in range(size):
                place = step if way == 0 else size - 1 - step
                total = -np.inf
                node = first[symbols[begin + place]]
                stop = place
                if node < 0 or words[node] < 0:
                    if way == 0:
                        ahead[place + 1] = np.logaddexp(ahead[place + 1], ahead[place] + unknown)
                    else:
                        total = unknown + (behind[place + 1] if place + 1 < size else 0.0)
                while node >= 0:
                    stop += 1
                    word = words[node]
                    if word >= 0:
                        if way == 0:
                            ahead[stop] = np.logaddexp(ahead[stop], ahead[place] + scores[word])
                        else:
                            rest = behind[stop] if stop < size else 0.0
                            total = np.logaddexp(total, scores[word] + rest)
                    if stop == size:
                        break
                    node = child(node, symbols[begin + stop], keys, children)
                if way == 1:
                    behind[place] = total
        behind[size] = 0.0
        for place in range(size):
            node = first[symbols[begin + place]]
            stop = place
            while node >= 0:
                stop += 1
                word = words[node]
                if word >= 0:
                    expected[word] += np.exp(ahead[place] + scores[word] + behind[stop] - ahead[size])
                if stop == size:
                    break
                node = child(node, symbols[begin + stop], keys, children)
        begin = end
