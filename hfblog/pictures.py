"""Pictures: grids of images, curves."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def image_grid(images: list[Image.Image], columns: int | None = None, scale: int | None = None, gap: int = 1) -> Image.Image:
    """Images of one size side by side, row by row; small ones are enlarged without smoothing."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = scale or max(1, 48 // images[0].width)
    width, height = images[0].width * scale, images[0].height * scale
    rows = math.ceil(len(images) / columns)
    grid = Image.new(
        images[0].mode,
        (columns * (width + gap) - gap, rows * (height + gap) - gap),
        color=128 if images[0].mode == "L" else (128,) * 3,
    )
    for index, image in enumerate(images):
        place = (index % columns * (width + gap), index // columns * (height + gap))
        grid.paste(image.resize((width, height), Image.Resampling.NEAREST), place)
    return grid


def plot(x_label: str, y_label: str):
    """A small figure and its axes."""
    figure = Figure(figsize=(5, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def curve_picture(curve: list[dict[str, float]], path: Path, loss: str = "validation loss (nats)") -> None:
    figure, axes = plot("epoch", loss)
    axes.plot([point["epoch"] for point in curve], [point["validation_loss"] for point in curve])
    figure.savefig(path)
