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
        edges: ``(room, 2)`` uint64, the other nodes' children, a hash table: a key, 0 where it is empty, and the child. Side
            by side they are one access to memory.
        words: ``(nodes,)`` int32, the word that ends at a node, or -1.
    """

    first: np.ndarray
    edges: np.ndarray
    words: np.ndarray


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _place(key, mask):
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def child(node, symbol, edges):
    """The node after a symbol, or -1."""
    mask = len(edges) - 1
    key = (np.uint64(node + 1) << np.uint64(16)) | np.uint64(symbol)
    place = _place(key, mask)
    while edges[place, 0] != 0:
        if edges[place, 0] == key:
            return np.int32(edges[place, 1])
        place = (place + 1) & mask
    return np.int32(-1)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _fill(symbols, ends, first, edges, words):
    mask = len(edges) - 1
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
            while edges[place, 0] != 0 and edges[place, 0] != key:
                place = (place + 1) & mask
            if edges[place, 0] == 0:
                edges[place, 0] = key
                edges[place, 1] = nodes
                nodes += 1
            node = np.int32(edges[place, 1])
        words[node] = word
        begin = end
    return nodes


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _move(edges, smaller):
    mask = len(smaller) - 1
    for row in range(len(edges)):
        key = edges[row, 0]
        if key != 0:
            place = _place(key, mask)
            while smaller[place, 0] != 0:
                place = (place + 1) & mask
            smaller[place, 0] = key
            smaller[place, 1] = edges[row, 1]


def _room(num_edges: int) -> int:
    """A power of two, at least twice as many rows as edges."""
    return 1 << max(4, (2 * num_edges).bit_length())


def build_trie(symbols: np.ndarray, ends: np.ndarray) -> Trie:
    """The trie of words.

    Args:
        symbols: ``(all,)`` uint16, of all words one after the other; none is 0.
        ends: ``(n,)`` int64, where each word ends.
    """
    trie = Trie(
        np.full(2**16, -1, np.int32),
        np.zeros((_room(len(symbols)), 2), np.uint64),
        np.full(len(symbols) + 1, -1, np.int32),
    )
    nodes = _fill(symbols, ends, *trie)
    # words share their beginnings: a table of no more than is needed stays in the processor's caches
    edges = np.zeros((_room(nodes), 2), np.uint64)
    _move(trie.edges, edges)
    return trie._replace(edges=edges, words=trie.words[:nodes].copy())


@numba.njit(cache=True, nogil=True, boundscheck=False)
def mark_chains(symbols, first, edges, words, joined):
    """``joined[i] = 1`` where a word of the trie spans the gap before symbol i."""
    length = len(symbols)
    for begin in range(length):
        if symbols[begin] == 0:
            continue
        node = first[symbols[begin]]
        position = begin + 1
        while node >= 0 and position < length and symbols[position] != 0:
            node = child(node, symbols[position], edges)
            position += 1
            if node >= 0 and words[node] >= 0:
                for gap in range(begin + 1, position):
                    joined[gap] = 1


@numba.njit(cache=True, nogil=True, boundscheck=False)
def count_pieces(symbols, first, edges, words, order, counts, long_begins, long_ends):
    """Counts of the pieces between gaps that no word of the trie spans.

    A piece of up to ``order`` symbols that is in the trie counts at its word. A longer one whose every stretch of ``order``
    symbols is in the trie is written to ``long_begins`` and ``long_ends``; how many, is given back.
    """
    length = len(symbols)
    whole = np.empty(order, np.int64)  # the word that the first 1, 2, ... symbols of the piece are, or -1
    piece = -1  # where it begins
    far = 0  # how far the words reach that begin in it
    stretches = 0  # how many of its stretches are in the trie
    found = 0
    for start in range(length + 1):
        symbol = symbols[start] if start < length else 0
        if piece >= 0 and (symbol == 0 or far <= start):
            size = start - piece
            if size > order:
                if stretches == size - order + 1:
                    long_begins[found] = piece
                    long_ends[found] = start
                    found += 1
            elif whole[size - 1] >= 0:
                counts[whole[size - 1]] += 1
            piece = -1
        if symbol == 0:
            continue
        if piece < 0:
            piece, far, stretches = start, start + 1, 0
            whole[:] = -1
        node = first[symbol]
        stop = start
        while node >= 0:
            stop += 1
            word = words[node]
            if word >= 0:
                far = max(far, stop)
                if start == piece and stop - start <= order:
                    whole[stop - start - 1] = word
                if stop - start == order:
                    stretches += 1
            if stop == length or symbols[stop] == 0:
                break
            node = child(node, symbols[stop], edges)
    return found


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _run_end(symbols, begin):
    """Where the symbols from ``begin`` on, which are no breaks, end."""
    end = begin + 1
    while end < len(symbols) and symbols[end] != 0:
        end += 1
    return end


@numba.njit(cache=True, nogil=True, boundscheck=False)
def segment(symbols, first, edges, words, scores, unknown, ends):
    """The segmentation of the highest sum of scores.

    ``ends`` ``(n + 1,)`` holds zeros; ``ends[i]`` becomes 2 + w where word w ends before symbol i, 1 where an unknown symbol
    does.
    """
    room = 256
    best, back, last = np.empty(room + 1), np.empty(room + 1, np.int64), np.empty(room + 1, np.int64)
    begin = 0
    while begin < len(symbols):
        if symbols[begin] == 0:
            begin += 1
            continue
        size = _run_end(symbols, begin) - begin
        if size > room:
            room = 2 * size
            best, back, last = np.empty(room + 1), np.empty(room + 1, np.int64), np.empty(room + 1, np.int64)
        # for every place the best sum up to it, where its last word begins, and which it is
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
                    last[place + 1] = -1
            next_place = place
            while node >= 0:
                next_place += 1
                word = words[node]
                if word >= 0:
                    score = so_far + scores[word]
                    if score > best[next_place]:
                        best[next_place] = score
                        back[next_place] = place
                        last[next_place] = word
                if next_place == size:
                    break
                node = child(node, symbols[begin + next_place], edges)
        place = size
        while place > 0:
            ends[begin + place] = 2 + last[place]
            place = back[place]
        begin += size


@numba.njit(cache=True, nogil=True, boundscheck=False)
def count_words(ends, starts, counts, documents, last_document):
    """Counts of a segmentation's words, and in how many documents each occurs; ``last_document`` starts at -1."""
    document = 0
    for place in range(1, len(ends)):
        word = ends[place] - 2
        if word < 0:
            continue
        while document + 1 < len(starts) and starts[document + 1] < place:
            document += 1
        counts[word] += 1
        if last_document[word] != document:
            last_document[word] = document
            documents[word] += 1


@numba.njit(cache=True, nogil=True, boundscheck=False)
def number_words(symbols, ends, starts, numbers, out, out_starts):
    """One number for every word of a segmentation, ``numbers[word]``, 0 for unknown ones and breaks; gives back how many."""
    document = 0
    size = 0
    for place in range(len(symbols)):
        while document < len(starts) and starts[document] <= place:
            out_starts[document] = size
            document += 1
        end = ends[place + 1]
        if symbols[place] == 0 or end > 0:
            out[size] = numbers[end - 2] if end > 1 else 0
            size += 1
    while document < len(starts):
        out_starts[document] = size
        document += 1
    return size


@numba.njit(cache=True, nogil=True, boundscheck=False)
def count_occurrences(symbols, starts, first, edges, words, counts, documents, last_document):
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
            node = child(node, symbols[position], edges)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def occurrences_of_first(symbols, first, edges, words, num_words, found):
    """Occurrences of the first ``num_words`` words: the word, its left and its right neighbour into ``found`` ``(n, 3)``.

    Gives back how many there are.
    """
    length = len(symbols)
    size = 0
    for begin in range(length):
        if symbols[begin] == 0:
            continue
        node = first[symbols[begin]]
        position = begin
        while node >= 0:
            word = words[node]
            if 0 <= word < num_words:
                found[size, 0] = word
                found[size, 1] = symbols[begin - 1] if begin > 0 else 0
                found[size, 2] = symbols[position + 1] if position + 1 < length else 0
                size += 1
            position += 1
            if position == length or symbols[position] == 0:
                break
            node = child(node, symbols[position], edges)
    return size


@numba.njit(cache=True, nogil=True, boundscheck=False)
def expected_words(symbols, first, edges, words, scores, unknown, expected):
    """Adds to ``expected`` how often each word is expected, by forward and backward sums over all segmentations."""
    room = 256
    ahead = np.empty(room + 1, np.float64)
    behind = np.empty(room + 1, np.float64)
    begin = 0
    while begin < len(symbols):
        if symbols[begin] == 0:
            begin += 1
            continue
        size = _run_end(symbols, begin) - begin
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
                    node = child(node, symbols[begin + stop], edges)
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
                node = child(node, symbols[begin + stop], edges)
        begin += size
