"""Evaluation of a term miner: its lexicon and segmentation against people's, its terms against a list of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .models.term_miner import TermMinerConfig, TermMinerModel
from .models.term_miner.alphabet import Alphabet, character_symbols
from .models.term_miner.contrast_scores import smoothed_share
from .models.term_miner.segmentation import Segmenter
from .pictures import plot
from .recipes import EvaluationRun, background_texts, mining_texts

Span = tuple[int, int]

# Lexicon precision is that of the first so many words of several characters.
FIRST_WORDS = (1000, 5000)


def evaluate_terms(run: EvaluationRun) -> dict[str, Any]:
    """Segmentation and lexicon where the data have words that people separated; terms where there is a list of them."""
    texts = mining_texts(run.splits, run.recipe)
    if "tokens" in run.splits["train"].features:
        gold = [words for split in run.splits.values() for words in split["tokens"]]
        measured = evaluate_segmentation(run, texts, gold)
    elif run.arguments.gold_terms is not None:
        measured = evaluate_retrieval(run, texts)
    else:
        raise ValueError("evaluation needs a column 'tokens' of separated words, or evaluation.gold_terms, a file of terms")
    sizes = run.model.table.corpus_sizes.tolist()
    config = run.model.config
    return measured | {
        "description": f"{sizes[0][1]:,} characters in {sizes[0][2]:,} documents; {config.num_words:,} words and "
        f"{config.num_compounds:,} compounds."
        + "".join(
            f" Background {name}: {characters:,} characters."
            for name, (_, characters, _) in zip(config.background_names, sizes[1:], strict=True)
        ),
        "exactness": [],
        "samples": [{"text": sentence(run.model, row)} for row in run.model.extract_terms(run.arguments.num_samples)],
    }


def sentence(miner: TermMinerModel, row: dict[str, Any]) -> str:
    """A term and its evidence."""
    return f"{row['term']}: {' '.join(miner.explain(row['term'])['reasons'])}"


def mine(
    config: TermMinerConfig, texts: list[str], background: dict[str, list[str]] | None = None, **changes: Any
) -> TermMinerModel:
    """Another miner of the same corpus."""
    settings = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(settings, name, value)
    return TermMinerModel(settings).fit(texts, background)


# --- segmentation ---


def spans_of(words: Iterable[str]) -> list[Span]:
    """Where words that stand one after the other begin and end."""
    spans, place = [], 0
    for word in words:
        spans.append((place, place + len(word)))
        place += len(word)
    return spans


def segmentation_scores(found: Sequence[list[Span]], gold: Sequence[list[Span]], texts: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of words, those of marks alone left out.

    Args:
        found, gold: spans of words in each text.
    """
    right = given = wanted = 0
    for spans, true_spans, text in zip(found, gold, texts, strict=True):
        mine = {span for span in spans if any(map(str.isalnum, text[slice(*span)]))}
        true = {span for span in true_spans if any(map(str.isalnum, text[slice(*span)]))}
        right, given, wanted = right + len(mine & true), given + len(mine), wanted + len(true)
    return {"precision": right / max(1, given), "recall": right / max(1, wanted), "f1": 2 * right / max(1, given + wanted)}


def lexicon_precision(words: Sequence[str], gold: set[str], first: int) -> float:
    """The share of the first words of several characters that people use, too."""
    several = [word for word in words if len(word) > 1][:first]
    return sum(word in gold for word in several) / max(1, len(several))


def evaluate_segmentation(run: EvaluationRun, texts: list[str], gold: list[list[str]]) -> dict[str, Any]:
    model, count = run.model, run.arguments.sentences
    held, true = texts[-count:], [spans_of(words) for words in gold[-count:]]
    # digits and letters read 0 and a, in people's words as in the lexicon
    vocabulary = {
        model.alphabet.decode(ids) for ids in map(model.alphabet.encode_term, {w for ws in gold for w in ws}) if all(ids)
    }

    def measure(miner: TermMinerModel, ranked: list[str]) -> dict[str, float]:
        found = [spans_of_segment(text, words) for text, words in zip(held, miner.segment(held), strict=True)]
        return percent(segmentation_scores(found, true, held)) | {
            f"lexicon_{first}": 100 * lexicon_precision(ranked, vocabulary, first) for first in FIRST_WORDS
        }

    labels = {"f1": "F1 of words", "precision": "precision", "recall": "recall"} | {
        f"lexicon_{first}": f"first {first:,} words that people use" for first in FIRST_WORDS
    }
    values = measure(model, model.words)
    results = {name: {"label": labels[name], "unit": "%", "value": values[name]} for name in labels}
    baselines: list[dict[str, Any]] = [
        {"label": "every character a word"}
        | percent(segmentation_scores([character_spans(text) for text in held], true, held)),
        {"label": "words of people, most frequent ones first"} | percent(gold_segmentation(gold, held, true)),
    ]
    if run.with_baselines:
        names = {
            "ngram_cohesion": "chains of n-grams (kexue.fm 6920)",
            "branching_entropy": "variation of branching entropy",
            "pmi_cut": "pairs of high PMI, without redundant words (the article)",
            "topwords": "maximum likelihood over all n-grams",
        }
        for method, label in tqdm(names.items(), desc="Other methods"):
            other = mine(model.config, texts, method=method, cohesion_thresholds=None, compounds=False)
            baselines.append({"label": label} | measure(other, by_frequency(other)))
    notes = [
        f"Words were found in all {len(texts):,} lines without their spaces; precision, recall and F1 are those of the last "
        f"{len(held):,} lines, marks left out. A line's segmentation is the best sum of scores of the lexicon's words.",
        "The first words are those of this miner's own ranking, and the most frequent ones of the other methods'. A run of "
        "digits or letters is one symbol, in people's words, too.",
    ]
    return {"results": results, "baselines": baselines, "notes": notes, "pictures": []}


def percent(scores: dict[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in scores.items()}


def by_frequency(miner: TermMinerModel) -> list[str]:
    """Words as methods without a ranking of their own list them."""
    counts = miner.table.counts.tolist()
    return [miner.words[place] for place in sorted(range(len(miner.words)), key=lambda place: -counts[place])]


def spans_of_segment(text: str, words: list[str]) -> list[Span]:
    """Where the words of a segmentation, which leaves spaces out, stand in the text."""
    spans, place = [], 0
    for word in words:
        begin = text.index(word, place)
        place = begin + len(word)
        spans.append((begin, place))
    return spans


def character_spans(text: str) -> list[Span]:
    return [(place, place + 1) for place in range(len(text))]


def gold_segmentation(gold: list[list[str]], held: list[str], true: list[list[Span]]) -> dict[str, float]:
    """The best segmentation by people's own words and their frequencies: what a lexicon can reach at most."""
    characters = " ".join({character for words in gold for word in words for character in word})
    alphabet = Alphabet(sorted({chr(code) for code in character_symbols(characters)[0] if code}))
    counts: Counter[tuple[int, ...]] = Counter()
    for word, count in Counter(word for words in gold for word in words).items():
        if all(symbols := alphabet.encode_term(word)):
            counts[symbols] += count
    scores = np.log(np.array(list(counts.values())) / counts.total())
    return segmentation_scores(list(Segmenter(list(counts), scores, alphabet).spans(held)), true, held)


# --- terms ---


def read_gold_terms(path: str | Path) -> list[str]:
    """Terms, one a line.

    Raises:
        ValueError: there is no such file, or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"evaluation.gold_terms={str(path)!r} is no file")
    terms = [line.split("\t")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not (terms := [term for term in terms if term]):
        raise ValueError(f"evaluation.gold_terms={str(path)!r} holds no terms")
    return terms


def evaluate_retrieval(run: EvaluationRun, texts: list[str]) -> dict[str, Any]:
    """How many of the first terms are on a list, and how many of the list's are found; stage by stage."""
    model, arguments = run.model, run.arguments
    gold = set(read_gold_terms(arguments.gold_terms))
    whole = "\n".join(texts)
    frequent = {term for term in tqdm(gold, desc="Counting listed terms") if whole.count(term) >= arguments.min_gold_count}

    def measure(ranked: list[str]) -> dict[str, float]:
        hits = np.array([term in gold for term in ranked[: max(arguments.first_terms)]], float)
        at = {f"precision_{first}": 100 * hits[:first].sum() / first for first in arguments.first_terms}
        first = max(arguments.first_terms)
        found = {f"recall_{first}": 100 * len(set(ranked[:first]) & frequent) / max(1, len(frequent))}
        return at | found

    labels = {f"precision_{first}": f"listed among the first {first:,}" for first in arguments.first_terms}
    labels[f"recall_{max(arguments.first_terms)}"] = (
        f"of the {len(frequent):,} listed terms that occur {arguments.min_gold_count} times, among the first "
        f"{max(arguments.first_terms):,}"
    )
    rankings = stages(model)
    values = measure(rankings.pop("ours"))
    results = {name: {"label": label, "unit": "%", "value": values[name]} for name, label in labels.items()}
    baselines = [{"label": label} | measure(ranked) for label, ranked in rankings.items()]
    if run.with_baselines:
        background = background_texts(run.recipe)
        baselines += [{"label": label} | measure(ranked) for label, ranked in published(model, texts, background).items()]
    notes = [
        f"The list has {len(gold):,} terms and is far from complete, so precision is a floor: compare rows. It was used for "
        "these figures alone.",
    ]
    tables = []
    if model.config.embedding_dim:
        seeds = [row["term"] for row in model.extract_terms(arguments.num_seeds)]
        grown = model.expand([seed for seed in seeds if model.table.vectors[model.ids[seed]].any()])
        label = f"grown from the first {len(seeds)} terms by meaning, {len(grown):,} in all"
        baselines.append({"label": label} | measure([row["term"] for row in sorted(grown, key=lambda row: -row["score"])]))
        tables.append(growth_table(grown, gold))
    ranked = [row["term"] for row in model.extract_terms(max(arguments.first_terms))]
    return {
        "results": results,
        "baselines": baselines,
        "notes": notes,
        "tables": tables,
        "pictures": [precision_picture({"ours": ranked} | rankings, gold, run.folder / "precision.png")],
    }


def stages(model: TermMinerModel) -> dict[str, list[str]]:
    """Rankings of one miner's terms, with one more of its means each time; the last is what it gives."""
    counts = model.table.counts.numpy()
    every = [row["term"] for row in model.extract_terms(rules=False, min_burstiness=0.0)]
    words = [term for term in every if model.ids[term] < model.config.num_words]
    return {
        "frequency": sorted(words, key=lambda term: (-counts[model.ids[term]], term)),
        "contrast of words": words,
        "contrast of words and compounds": every,
        "ours": [row["term"] for row in model.extract_terms()],
    }


def published(model: TermMinerModel, texts: list[str], background: dict[str, list[str]]) -> dict[str, list[str]]:
    """The article's ranking by its own lexicon: as published, and with the missing words counted as 0.

    The published code computed its score on words that both corpora hold, and all others fell to the end.
    """
    article = {"method": "pmi_cut", "cohesion_thresholds": None, "compounds": False, "min_burstiness": 0.0}
    domain = mine(model.config, texts, **article)
    general = mine(model.config, [text for part in background.values() for text in part], **article)
    listed = [row["term"] for row in domain.extract_terms()]
    count = {term: int(domain.table.counts[domain.ids[term]]) for term in listed}
    ids, counts = general.ids, general.table.counts.tolist()
    other = {term: counts[ids[term]] if term in ids else 0 for term in listed}

    def ranked(terms: list[str]) -> list[str]:
        score = smoothed_share(np.array([count[term] for term in terms]), np.array([other[term] for term in terms]))
        return [terms[place] for place in np.argsort(-score, kind="stable")]

    both = [term for term in listed if other[term]]
    return {
        "the article's words by frequency": sorted(listed, key=lambda term: -count[term]),
        "the article, as published": ranked(both) + [term for term in listed if not other[term]],
        "the article, missing words counted as 0": ranked(listed),
    }


def growth_table(grown: list[dict[str, Any]], gold: set[str]) -> dict[str, Any]:
    """How a list drifts as it grows."""
    rows = []
    for depth in sorted({row["depth"] for row in grown}):
        here = [row for row in grown if row["depth"] == depth]
        near = sum(row["seed_similarity"] for row in here) / len(here)
        listed = 100 * sum(row["term"] in gold for row in here) / len(here)
        rows.append(
            [depth, len(here), here[0]["threshold"] if depth else "", near, listed, ", ".join(r["term"] for r in here[:5])]
        )
    return {
        "caption": "Growth by meaning from the first terms, which nobody chose: the threshold tightens with the depth, and "
        "the cosine to the mean of the seeds shows the drift.",
        "columns": ["depth", "terms", "cosine above", "mean cosine to the seeds", "listed (%)", "the first"],
        "rows": rows,
    }


def precision_picture(rankings: dict[str, list[str]], gold: set[str], path: Path) -> dict[str, str]:
    figure, axes = plot("first terms", "on the list (%)")
    for label, ranked in rankings.items():
        hits = np.cumsum([term in gold for term in ranked[:2000]])
        places = np.arange(1, len(hits) + 1)
        axes.plot(places[19:], 100 * hits[19:] / places[19:], label=label)
    axes.set_xscale("log")
    axes.legend(fontsize="small")
    figure.savefig(path)
    return {"file": path.name, "caption": "Share of the first terms that are on the list"}
