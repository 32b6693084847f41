"""Images from a saved flow."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Pipeline
from transformers.pipelines.base import GenericTensor
from transformers.utils import ModelOutput


class UnconditionalImageGenerationPipeline(Pipeline):
    r"""Draws images from a model with a ``sample`` method.

    Call it with how many images are wanted; it returns a list of PIL images.

    Args:
        num_samples: how many images.
        temperature: see the model's ``sample``.
        seed: seed of the draw; without one the global generator is used.

    Example (``folder`` is a saved flow):

    ```python
    from transformers import pipeline

    generate = pipeline("unconditional-image-generation", model=folder, trust_remote_code=True)
    images = generate(16, temperature=0.8, seed=0)
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_video_processor = False  # otherwise a video processor is looked for, under a question about remote code
    _load_tokenizer = False

    def _sanitize_parameters(self, temperature: float | None = None, seed: int | None = None):
        forward = {name: value for name, value in (("temperature", temperature), ("seed", seed)) if value is not None}
        return {}, forward, {}

    def __call__(self, num_samples: int = 1, **kwargs: Any) -> list:
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"the pipeline takes the number of images, an integer of at least 1, got {num_samples!r}")
        return super().__call__(num_samples, **kwargs)

    def preprocess(self, num_samples: int) -> dict[str, GenericTensor]:
        return {"num_samples": num_samples}

    def _forward(self, inputs: dict, temperature: float = 1.0, seed: int | None = None) -> ModelOutput:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        sample = self.model.sample(inputs["num_samples"], temperature=temperature, generator=generator)
        return ModelOutput(sample=sample)

    def postprocess(self, outputs: ModelOutput) -> list:
        return self.image_processor.post_process(outputs["sample"])


__all__ = ["UnconditionalImageGenerationPipeline"]
