"""Images to grey levels on a grid, and samples back to images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import is_vision_available

if is_vision_available():
    from PIL import Image

# Rec. 601 luma, the weights of PIL's conversion to grey
LUMA = np.array([0.299, 0.587, 0.114])


class FlowImageProcessor(BaseImageProcessor):
    r"""Brings images to ``pixel_values``: ``(batch, channels, height, width)`` float32, level k of K as ``k / (K - 1)``.

    Args:
        size: ``{"height": ..., "width": ...}`` of every image; None takes any one size.
        num_channels: 1 (colour is turned to grey by its luma) or 3 (grey is repeated).
        num_levels: grey levels K. Eight-bit values v are rounded to level ``v (K - 1) / 255``.
        do_resize: scale images of another size (bilinear) instead of refusing them.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog import FlowImageProcessor
    >>> processor = FlowImageProcessor(size={"height": 8, "width": 8}, num_levels=17)
    >>> processor(np.zeros((8, 8), dtype=np.uint8), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 1, 8, 8])

    ```
    """

    model_input_names = ["pixel_values"]
    _auto_class = "AutoImageProcessor"

    def __init__(
        self,
        size: dict[str, int] | None = None,
        num_channels: int = 1,
        num_levels: int = 256,
        do_resize: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels={num_channels} must be 1 (grey) or 3 (colour)")
        if not 2 <= num_levels <= 256:
            raise ValueError(f"num_levels={num_levels} must lie between 2 and 256")
        if size is not None and set(size) != {"height", "width"}:
            raise ValueError(f"size={size!r} must have the keys 'height' and 'width'")
        if do_resize and size is None:
            raise ValueError("do_resize=True needs a size")
        self.size = None if size is None else dict(size)
        self.num_channels = num_channels
        self.num_levels = num_levels
        self.do_resize = do_resize

    @classmethod
    def from_model_config(cls, config: Any, **overrides: Any) -> FlowImageProcessor:
        """The processor that fits a model over images: a density's event, or a classifier's ``image_size`` (None for any).

        Raises:
            ValueError: the model's inputs are not images.
        """
        if hasattr(config, "event_shape"):
            shape, num_levels = tuple(config.event_shape), config.num_levels
            if len(shape) != 3 or shape[0] not in (1, 3) or num_levels is None:
                raise ValueError(
                    f"event_shape={shape} with num_levels={num_levels} is not that of grey or colour images; an image "
                    "processor needs (1 or 3, height, width) and a number of levels"
                )
            num_channels, height_and_width = shape[0], shape[1:]
        else:
            num_channels, height_and_width, num_levels = config.num_channels, config.height_and_width, 256
        size = None if height_and_width is None else dict(zip(("height", "width"), height_and_width, strict=True))
        return cls(**({"size": size, "num_channels": num_channels, "num_levels": num_levels} | overrides))

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        do_resize: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepare one image or a list or batch of them.

        Args:
            images: PIL images (any 8-bit or 1-bit mode), arrays or tensors: integers in [0, 255], booleans, or floats in
                [0, 1]; ``(height, width)``, with a channel axis first or last, or a batch axis in front of that.
            return_tensors: ``"pt"``, ``"np"`` or None (a list of arrays).
            input_data_format: ``"channels_first"`` or ``"channels_last"``, where an array's shape does not tell.
            do_resize: see the class.

        Raises:
            ValueError: an image of another size or a value out of range; the message names both.
        """
        if kwargs:
            raise TypeError(f"FlowImageProcessor does not know {', '.join(map(repr, kwargs))}")
        do_resize = self.do_resize if do_resize is None else do_resize
        if do_resize and self.size is None:
            raise ValueError("do_resize=True needs a size")
        arrays = [self._to_grid(image, do_resize, input_data_format) for image in self._flatten(images)]
        if not arrays:
            raise ValueError("no images were given")
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise ValueError(f"the images of one batch must have one shape, got {sorted(shapes)}; give the processor a size")
        return BatchFeature({"pixel_values": arrays}, tensor_type=return_tensors)

    def post_process(self, x: torch.Tensor) -> list[Image.Image]:
        """Continuous samples ``(batch, channels, height, width)``, as a flow's ``sample`` gives them, to 8-bit images."""
        levels = self.num_levels
        grid = (x.detach().double().cpu() * levels).floor().clamp(0, levels - 1) / (levels - 1)
        pixels = (grid * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]

    @staticmethod
    def _flatten(images: Any) -> list:
        if isinstance(images, (list, tuple)):
            nested = [FlowImageProcessor._flatten(image) for image in images]
            return [image for part in nested for image in part]
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            return list(images)
        return [images]

    def _to_grid(self, image: Any, do_resize: bool, input_data_format: str | None) -> np.ndarray:
        """One image to ``(channels, height, width)`` float32 on the grid."""
        values = self._to_channels_last(image, input_data_format)
        channels = values.shape[-1]
        if channels in (2, 4):  # transparency
            values, channels = values[..., :-1], channels - 1
        if channels == 3 and self.num_channels == 1:
            values = (values @ LUMA)[..., None]
        elif channels == 1 and self.num_channels == 3:
            values = values.repeat(3, axis=-1)
        if self.size is not None and values.shape[:2] != (self.size["height"], self.size["width"]):
            values = self._resize(values, do_resize)
        levels = np.rint(values * (self.num_levels - 1))
        return (levels / (self.num_levels - 1)).astype(np.float32).transpose(2, 0, 1)

    def _resize(self, values: np.ndarray, do_resize: bool) -> np.ndarray:
        height, width = self.size["height"], self.size["width"]
        if not do_resize:
            raise ValueError(
                f"expected images of {height}x{width} pixels (height x width), got {values.shape[0]}x{values.shape[1]}; "
                "pass do_resize=True to scale them"
            )
        # mode F keeps the precision that an 8-bit image in between would lose
        bands = [Image.fromarray(band.astype(np.float32)) for band in values.transpose(2, 0, 1)]
        bands = [np.asarray(band.resize((width, height), Image.Resampling.BILINEAR)) for band in bands]
        return np.stack(bands, axis=-1).clip(0, 1)

    @staticmethod
    def _to_channels_last(image: Any, input_data_format: str | None) -> np.ndarray:
        """Any accepted image to ``(height, width, channels)`` float64 in [0, 1]."""
        if is_vision_available() and isinstance(image, Image.Image):
            if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV"):
                raise ValueError(f"images of mode {image.mode!r} have no 8-bit values; convert them to 'L' or 'RGB' first")
            if image.mode not in ("L", "LA", "RGB", "RGBA"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            array, first = np.asarray(image), False
        elif isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            array, first = (image.float() if image.dtype == torch.bfloat16 else image).numpy(), True
        elif isinstance(image, np.ndarray):
            array, first = image, False
        else:
            raise ValueError(f"expected a PIL image, an array or a tensor, got {type(image).__name__}")

        if array.ndim == 2:
            array = array[..., None]
        elif array.ndim == 3:
            if input_data_format is not None:
                first = input_data_format == "channels_first"
            elif (array.shape[0] in (1, 3)) != (array.shape[-1] in (1, 3)):
                first = array.shape[0] in (1, 3)
            if first:
                array = array.transpose(1, 2, 0)
        if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4):
            raise ValueError(
                f"expected an image of shape (height, width), with 1 or 3 channels first or last, got {tuple(image.shape)}"
            )

        if array.dtype == bool:
            return array.astype(np.float64)
        top = 255 if np.issubdtype(array.dtype, np.integer) else 1
        values = array.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("the image holds NaN or infinite values")
        if values.size and (values.min() < 0 or values.max() > top):
            kind = "integer" if top == 255 else "float"
            raise ValueError(f"{kind} image values must lie in [0, {top}], got {values.min():g} to {values.max():g}")
        return values / top


__all__ = ["FlowImageProcessor"]
