"""Images and texts for a captioning model."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature, PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin


class ConditionalLNBertProcessor(ProcessorMixin):
    r"""The image processor of the encoder and the tokenizer of the text, saved together.

    Args:
        image_processor: any image processor.
        tokenizer: tokenizer of the model.

    Example (``folder`` is a saved captioning model):

    ```python
    from transformers import AutoModelForCausalLM, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    texts = processor.batch_decode(model.generate(**processor(images=images, return_tensors="pt")))
    ```
    """

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"
    _auto_class = "AutoProcessor"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """``pixel_values`` of images and ``input_ids``, ``attention_mask`` of texts; keywords go to the tokenizer."""
        if images is None and text is None:
            raise ValueError("give images, text or both")
        data: dict[str, Any] = {}
        if images is not None:
            data |= self.image_processor(images, return_tensors=return_tensors)
        if text is not None:
            data |= self.tokenizer(text, return_tensors=return_tensors, **kwargs)
        return BatchFeature(data)

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """Texts without special tokens."""
        return self.tokenizer.batch_decode(sequences, **({"skip_special_tokens": True} | kwargs))


def build_captioning_processor(
    vision_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, image_size: int
) -> ConditionalLNBertProcessor:
    """A processor for images of any size and mode: RGB, scaled to ``image_size`` pixels a side, values in [-1, 1]."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    if getattr(vision_config, "num_channels", 3) != 3:
        raise ValueError(
            f"vision_config.num_channels={vision_config.num_channels}: the processor gives RGB images, 3 channels"
        )
    image_processor = ViTImageProcessorPil(
        size={"height": image_size, "width": image_size},
        do_convert_rgb=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return ConditionalLNBertProcessor(image_processor, tokenizer)


__all__ = ["ConditionalLNBertProcessor", "build_captioning_processor"]
