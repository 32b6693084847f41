"""Evaluation of item vectors: what share of the mutual information a cost explains, and what the vectors are good for."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .data import PairTable, SequenceTable, item_source
from .models.contrastive import (
    MinEntropyEmbeddingConfig,
    MinEntropyEmbeddingForPreTraining,
    ReferencePoints,
    WordVectors,
    count_pairs,
)
from .models.contrastive.modeling_min_entropy_embedding import keep_chances
from .pictures import plot
from .recipes import EvaluationRun

# Files of the gensim package by the names that the field has for them.
GENSIM_FILES = {"wordsim353": "wordsim353.tsv", "simlex999": "simlex999.txt", "google": "questions-words.txt"}


def evaluate_item_vectors(run: EvaluationRun) -> dict[str, Any]:
    """The reference points of the cost, and what fits the items: ratings of words, a map's neighbours, a walk's length."""
    run.model.eval()
    source = item_source(run.splits["train"])
    if source == "features":
        return evaluate_map(run)
    if source == "pairs":
        return evaluate_law(run)
    return evaluate_words(run)


def point_results(points: ReferencePoints) -> dict[str, dict[str, Any]]:
    """log V >= H(J) >= S >= H(J | I) as results of a card."""
    labels = {
        "uniform": "log V",
        "unigram": "entropy of the next item, H(J)",
        "cost": "expected cost S",
        "conditional": "its entropy given the one before",
    }
    results = {name: {"label": label, "unit": "nats", "value": getattr(points, name)} for name, label in labels.items()}
    explained = {"label": "mutual information explained", "unit": "%", "value": 100 * points.explained}
    return {"explained": explained} | {name: results[name] for name in ("cost", "unigram", "conditional", "uniform")}


# --- words ---


def corpus_law(model: MinEntropyEmbeddingForPreTraining, table: SequenceTable) -> Tensor:
    """The law of pairs that a model is trained on, ``(V, V)`` sparse: windows, with frequent words thinned out."""
    config = model.config
    law = count_pairs(table.corpus.items, table.corpus.starts, config.vocab_size, config.window_size)
    if not config.subsample:
        return law
    chances = keep_chances(model.noise.counts.cpu(), config.subsample).double()
    first, second = law.indices()
    values = law.values() * chances[first] * chances[second]
    return torch.sparse_coo_tensor(law.indices(), values, law.shape, is_coalesced=True, check_invariants=False)


@torch.no_grad()
def evaluate_words(run: EvaluationRun) -> dict[str, Any]:
    model, tokenizer, arguments = run.model, run.processor, run.arguments
    points = model.reference_points(corpus_law(model, run.prepared["train"]))
    held_out_law = corpus_law(model, run.prepared[arguments.split])
    held_out = model.expected_cost(held_out_law.to(model.device)).item()
    unigram = unigram_cost(model, held_out_law)
    results = point_results(points)
    results["held_out_cost"] = {"label": f"expected cost on the {arguments.split} split", "unit": "nats", "value": held_out}
    words = WordVectors(model.model, tokenizer)
    judges = word_judges(run)
    results |= {
        name: {"label": judge.label, "unit": judge.unit, "value": judge.measure(words)} for name, judge in judges.items()
    }
    baselines: list[dict[str, Any]] = [
        {"label": "frequencies of the training words", "cost": points.unigram, "held_out_cost": unigram, "explained": 0.0}
    ]
    if run.with_baselines and judges:
        random = np.random.default_rng(0).normal(size=(len(words), 50))
        rivals = {"random vectors": WordVectors.from_words(words.words, random)} | peer_vectors(run)
        for label, rival in rivals.items():
            baselines.append({"label": label} | {key: judge.measure(rival) for key, judge in judges.items()})
    samples = [
        {"text": f"{word}: {', '.join(near for near, _ in words.most_similar(word, top_k=8))}"}
        for word in example_words(words, arguments.num_samples)
    ]
    if model.config.num_subwords:
        results["unknown_words"] = unknown_word_result(words)
    notes = [
        "The cost is that of the softmax over all words; the law is that of the training windows, with frequent words thinned "
        "out as in training. Its conditional entropy knows every pair that occurs once: no model of new text comes near it.",
        *(f"{judge.label}: {judge.coverage(words)}" for judge in judges.values()),
    ]
    return {
        "description": f"{int(run.prepared['train'].corpus.counts.sum()):,} words of training text, {len(words):,} different.",
        "results": results,
        "baselines": baselines,
        "notes": notes,
        "exactness": [],
        "samples": samples,
        "pictures": word_map(words, judges.get("same_pos"), run),
    }


def unigram_cost(model: MinEntropyEmbeddingForPreTraining, law: Tensor) -> float:
    """What words of a law cost by their frequencies in the training text, thinned out alike, in nats."""
    counts = model.noise.counts.cpu()
    frequencies = counts.double() * keep_chances(counts, model.config.subsample)
    mass = torch.sparse.sum(law, 0).to_dense()
    return -(mass / mass.sum() * (frequencies / frequencies.sum()).log()).sum().item()


def example_words(words: WordVectors, count: int) -> list[str]:
    """Words at even distances in the order of frequency, from the hundredth to the three-thousandth: nobody chose them."""
    last = min(3000, len(words) // 2)
    first = min(100, last // 2)
    return [words.words[place] for place in np.linspace(first, last, min(count, last)).astype(int)]


@dataclass
class Similarity:
    """Spearman's correlation of cosines with the ratings of people, unknown words left out."""

    label: str
    pairs: list[tuple[str, str, float]]
    unit: str = "Spearman's correlation"

    def known(self, words: WordVectors) -> list[tuple[str, str, float]]:
        return [pair for pair in self.pairs if pair[0] in words and pair[1] in words]

    def measure(self, words: WordVectors) -> float:
        from scipy.stats import spearmanr

        known = self.known(words)
        if len(known) < 3:
            return math.nan
        cosines = [words.similarity(first, second) for first, second, _ in known]
        return float(spearmanr(cosines, [rating for *_, rating in known]).statistic)

    def coverage(self, words: WordVectors) -> str:
        return f"{len(self.known(words))} of {len(self.pairs)} pairs are known."


@dataclass
class Analogies:
    """Share of questions ``a : b = c : ?`` whose answer comes first, unknown words left out (Mikolov et al. 2013)."""

    label: str
    questions: list[tuple[str, str, str, str]]
    candidates: int
    unit: str = "% right"

    def known(self, words: WordVectors) -> list[tuple[int, ...]]:
        ids = {word: index for index, word in enumerate(words.frequent(self.candidates))}
        rows = [tuple(ids.get(word, -1) for word in question) for question in self.questions]
        return [row for row in rows if min(row) >= 0]

    @torch.no_grad()
    def measure(self, words: WordVectors) -> float:
        known = torch.tensor(self.known(words))
        if not len(known):
            return math.nan
        table = F.normalize(words.vectors(words.frequent(self.candidates)), dim=-1)
        right = 0
        for a, b, c, answer in (part.T for part in tqdm(known.split(512), desc=self.label, leave=False)):
            scores = (table[b] - table[a] + table[c]) @ table.T
            scores.scatter_(1, torch.stack([a, b, c], 1), -math.inf)
            right += int((scores.argmax(1) == answer).sum())
        return 100 * right / len(known)

    def coverage(self, words: WordVectors) -> str:
        return (
            f"{len(self.known(words)):,} of {len(self.questions):,} questions have all words among the {self.candidates:,} "
            "most frequent."
        )


@dataclass
class PartOfSpeech:
    """Share of a word's nearest neighbours that have its part of speech, over the most frequent 5,000 words."""

    label: str
    tags: dict[str, str]
    neighbours: int
    unit: str = "share"

    def known(self, words: WordVectors) -> list[str]:
        return [word for word in words.frequent() if word in self.tags][:5000]

    def measure(self, words: WordVectors) -> float:
        known = self.known(words)
        table = F.normalize(words.vectors(known), dim=-1)
        near = (table @ table.T).fill_diagonal_(-math.inf).topk(min(self.neighbours, len(known) - 1)).indices
        tags = np.array([self.tags[word] for word in known])
        return float((tags[near.numpy()] == tags[:, None]).mean())

    def coverage(self, words: WordVectors) -> str:
        tags = [self.tags[word] for word in self.known(words)]
        shares = np.unique(tags, return_counts=True)[1] / max(1, len(tags))
        return f"two words of these have one part of speech with chance {float((shares**2).sum()):.3f}."


def word_judges(run: EvaluationRun) -> dict[str, Similarity | Analogies | PartOfSpeech]:
    """What the vectors are measured by, by the recipe and the data."""
    arguments, lower = run.arguments, run.recipe.processor.get("lowercase", True)
    judges: dict[str, Similarity | Analogies | PartOfSpeech] = {}
    for name in arguments.similarity:
        rows = [line.split("\t") for line in _lines(name, lower) if not line.startswith("#")]
        pairs = [(first, second, float(rating)) for first, second, rating, *_ in rows]
        judges[Path(name).stem] = Similarity(Path(name).stem, pairs)
    for name in arguments.analogies:
        rows = [line.split() for line in _lines(name, lower) if not line.startswith(":")]
        judges[Path(name).stem] = Analogies(
            f"{Path(name).stem} analogies", [tuple(row) for row in rows], arguments.analogy_candidates
        )
    train = run.splits["train"]
    if "pos_tags" in train.column_names:
        counts: dict[str, dict[str, int]] = {}
        for row in train:
            for word, tag in zip(row["tokens"], row["pos_tags"], strict=True):
                found = counts.setdefault(word, {})
                kind = tag[0].lower()  # the rest of a tag tells names of places from names of people, and the like
                found[kind] = found.get(kind, 0) + 1
        tags = {word: max(found, key=found.get) for word, found in counts.items()}
        label = f"same part of speech, {arguments.pos_neighbours} neighbours"
        judges["same_pos"] = PartOfSpeech(label, tags, arguments.pos_neighbours)
    return judges


def _lines(name: str, lower: bool) -> list[str]:
    if name in GENSIM_FILES:
        try:
            from gensim.test.utils import datapath
        except ImportError as error:
            raise ImportError(f"the words of {name!r} come with gensim: pip install gensim") from error
        path = Path(datapath(GENSIM_FILES[name]))
    else:
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"there is no file {name!r}; known by name: {', '.join(GENSIM_FILES)}")
    text = path.read_text(encoding="utf-8")
    return [line for line in (text.lower() if lower else text).splitlines() if line.strip()]


def peer_vectors(run: EvaluationRun) -> dict[str, WordVectors]:
    """gensim's Word2Vec with the settings of the recipe, by its name; nothing where gensim is not there or no twin of it."""
    config: MinEntropyEmbeddingConfig = run.model.config
    if (config.cost, config.objective, config.tie_context, config.window_size is None) != ("dot", "neg", False, False):
        return {}
    try:
        import gensim
    except ImportError:
        return {}
    corpus, training = run.prepared["train"].corpus, run.recipe.training
    names = np.array(run.processor.convert_ids_to_tokens(list(range(config.vocab_size))), dtype=object)
    sentences = [list(names[corpus.items[a:b]]) for a, b in zip(corpus.starts[:-1], corpus.starts[1:], strict=True)]
    model = gensim.models.Word2Vec(
        sentences,
        sg=1,
        vector_size=config.embedding_dim,
        window=config.window_size,
        negative=config.num_noise_samples,
        ns_exponent=config.noise_power,
        sample=config.subsample,
        min_count=1,
        alpha=training.get("learning_rate", 0.025),
        epochs=math.ceil(training.get("num_train_epochs", 5)),
        workers=1,
        seed=training.get("seed", 0),
    )
    label = f"gensim {gensim.__version__}, Word2Vec with the same settings, one thread"
    return {label: WordVectors.from_words(model.wv.index_to_key, model.wv.vectors)}


@torch.no_grad()
def unknown_word_result(words: WordVectors, share: float = 0.05, top_k: int = 10) -> dict[str, Any]:
    """How many neighbours a word keeps that was left out of the fit of subwords and is composed of its parts."""
    config = words.model.config
    names = words.frequent()
    chosen = np.random.default_rng(0).permutation(len(names))[: max(1, round(share * len(names)))]
    held = [names[index] for index in sorted(chosen)]
    left_out = set(held)
    rest = [name for name in names if name not in left_out]
    fresh = WordVectors.from_words(
        rest, words.vectors(rest), num_subwords=config.num_subwords, subword_lengths=list(config.subword_lengths)
    )
    fresh.fit_subwords()
    table = F.normalize(fresh.vectors(rest), dim=-1)
    kept = 0
    for place in range(0, len(held), 1024):
        part = held[place : place + 1024]
        near = [
            (F.normalize(vectors, dim=-1) @ table.T).topk(top_k).indices
            for vectors in (words.vectors(part), fresh.model.compose_words(part))
        ]
        kept += int((near[0][:, :, None] == near[1][:, None, :]).sum())
    return {
        "label": f"of {top_k} neighbours of a word, those of its parts alone ({len(held):,} words left out of their fit)",
        "unit": "%",
        "value": 100 * kept / (top_k * len(held)),
    }


def word_map(words: WordVectors, speech: PartOfSpeech | None, run: EvaluationRun) -> list[dict[str, str]]:
    shown = words.frequent(run.arguments.map_words + 100)[100:] or words.frequent(run.arguments.map_words)
    groups = None if speech is None else [speech.tags.get(word, "") for word in shown]
    words.picture(run.folder / "map.png", shown, groups, seed=run.arguments.seed)
    caption = f"{len(shown)} words, from the hundredth most frequent on, in a map by the t-SNE cost"
    return [{"file": "map.png", "caption": caption + (", coloured by part of speech" if groups else "")}]


# --- maps ---


def evaluate_map(run: EvaluationRun) -> dict[str, Any]:
    """A map of images or vectors: neighbours kept, and the class of the nearest one."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness

    model, arguments = run.model, run.arguments
    table: PairTable = run.prepared["train"]
    features = table.features
    classes = map_classes(run)
    positions = model.model.vectors().detach().float().cpu().numpy()

    def measures(places: np.ndarray) -> dict[str, float]:
        found = {"trustworthiness": trustworthiness(features, places, n_neighbors=arguments.neighbours)}
        return found | ({} if classes is None else {"nearest": 100 * nearest_class(places, classes)})

    labels = {
        "trustworthiness": (f"trustworthiness, {arguments.neighbours} neighbours", "1 is right"),
        "nearest": ("nearest neighbour has the class", "%"),
    }
    results = point_results(model.reference_points(table.joint))
    own = measures(positions)
    results = {
        name: dict(zip(("label", "unit"), labels[name], strict=True), value=value) for name, value in own.items()
    } | results
    baselines = []
    if run.with_baselines:
        baselines.append({"label": "principal components"} | measures(PCA(positions.shape[1]).fit_transform(features)))
        perplexity = run.recipe.processor.get("perplexity", 30.0)
        start = time.perf_counter()
        peer = TSNE(positions.shape[1], perplexity=perplexity, random_state=arguments.seed, init="pca").fit_transform(features)
        seconds = time.perf_counter() - start
        baselines.append({"label": f"scikit-learn's t-SNE ({seconds:.1f} s beside other work)"} | measures(peer))
        if classes is not None:
            baselines.append({"label": "all dimensions, no map", "nearest": 100 * nearest_class(features, classes)})
    return {
        "description": f"{len(features):,} items, all of them both learned and measured: a map has nothing to hold out.",
        "results": results,
        "baselines": baselines,
        "notes": [
            "The cost is that of the next item, -log q(j | i), under the law of neighbours; S is never below its conditional "
            "entropy, which is log perplexity where neighbours are not made symmetric."
        ],
        "exactness": [],
        "pictures": [map_picture(positions, classes, run.folder)],
    }


def map_classes(run: EvaluationRun) -> np.ndarray | None:
    """Names of the classes of all examples, in the order of the map."""
    names = [name for name, feature in run.splits["train"].features.items() if isinstance(feature, ClassLabel)]
    if len(names) != 1:
        return None
    labels = run.splits["train"].features[names[0]].names
    return np.array([labels[label] for part in run.splits.values() for label in part[names[0]]])


def nearest_class(places: np.ndarray, classes: np.ndarray) -> float:
    """Share of items whose nearest other item has their class."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=1).fit(places).kneighbors(return_distance=False)[:, 0]
    return float((classes[near] == classes).mean())


def map_picture(positions: np.ndarray, classes: np.ndarray | None, folder: Path) -> dict[str, str]:
    figure, axes = plot("", "")
    figure.set_size_inches(6, 5)
    kinds = [None] if classes is None else sorted(set(classes))
    for kind in kinds:
        part = positions if kind is None else positions[classes == kind]
        axes.scatter(part[:, 0], part[:, 1], s=4, label=kind)
    if classes is not None:
        axes.legend(markerscale=3, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xticks([])
    axes.set_yticks([])
    figure.savefig(folder / "map.png")
    return {"file": "map.png", "caption": "The map" + ("" if classes is None else ", coloured by class, which it never saw")}


# --- laws ---


def evaluate_law(run: EvaluationRun) -> dict[str, Any]:
    """What is known by its counts alone: the cost under them; of a layout, the walk."""
    model, tokenizer = run.model, run.processor
    table: PairTable = run.prepared["train"]
    words = WordVectors(model.model, tokenizer)
    results = point_results(model.reference_points(table.joint))
    baselines: list[dict[str, Any]] = [{"label": "frequencies", "cost": results["unigram"]["value"], "explained": 0.0}]
    pictures = []
    borrowed = model.occurring_items()
    names = [tokenizer.convert_ids_to_tokens(index) for index in borrowed.tolist()]
    if model.config.objective == "layout":
        layout = model.library_layout(table.joint)
        layout.positions = model.model.vectors(borrowed).detach().double().cpu()
        results = {
            "walk": {
                "label": "expected walk from the door to one and on to the next",
                "unit": "distances between neighbours",
                "value": layout.expected_cost() / layout.min_distance,
            },
            "smallest_distance": {
                "label": "smallest distance of two",
                "unit": f"{layout.min_distance:g} is allowed",
                "value": layout.smallest_distance(),
            },
        } | results
        random_walks = [layout.expected_cost(layout.random_order(seed)) / layout.min_distance for seed in range(100)]
        baselines += [
            {
                "label": "the most borrowed nearest the door",
                "walk": layout.expected_cost(layout.by_popularity()) / layout.min_distance,
            },
            {"label": "in any order, mean of 100", "walk": float(np.mean(random_walks))},
        ]
        layout.picture(run.folder / "shelves.png", names)
        caption = "The shelves: the cross is the door, lines join what is often taken together"
        pictures.append({"file": "shelves.png", "caption": caption})
    samples = [
        {"text": f"{name}: {', '.join(near for near, _ in words.most_similar(name, top_k=5, metric='distance'))}"}
        for name in names[:: max(1, len(names) // run.arguments.num_samples)][: run.arguments.num_samples]
    ]
    return {
        "description": f"{len(borrowed):,} items, {len(table) // 2:,} pairs; the counts are learned and measured alike.",
        "results": results,
        "baselines": baselines,
        "notes": [],
        "exactness": [],
        "samples": samples,
        "pictures": pictures,
    }


__all__ = ["evaluate_item_vectors"]
