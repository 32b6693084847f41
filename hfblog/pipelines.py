"""Registers the pipelines for tasks that transformers has none for; importing hfblog is enough.

| task | class | models |
|---|---|---|
| ``term-mining`` | [`TermMiningPipeline`] | [`TermMinerModel`] |
| ``unconditional-image-generation`` | [`UnconditionalImageGenerationPipeline`] | every flow over images |
"""

from __future__ import annotations

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .models.flow import UnconditionalImageGenerationPipeline
from .models.term_miner import TermMiningPipeline

if "unconditional-image-generation" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        "unconditional-image-generation",
        pipeline_class=UnconditionalImageGenerationPipeline,
        pt_model=AutoModel,
        type="image",
    )

if "term-mining" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline("term-mining", pipeline_class=TermMiningPipeline, pt_model=AutoModel, type="text")

__all__ = ["TermMiningPipeline", "UnconditionalImageGenerationPipeline"]
