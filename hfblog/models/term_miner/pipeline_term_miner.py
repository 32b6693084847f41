"""Terms in texts, from a saved miner."""

from __future__ import annotations

from typing import Any

from transformers import Pipeline


class TermMiningPipeline(Pipeline):
    r"""Finds the terms of a mined lexicon in texts.

    Call it with a text, a list of texts, or a generator or data set of them, which is read as it goes.

    Args:
        top_k: so many terms a text, the most characteristic; all in the order of the text if None.
        min_score: terms of a lower score are left out.

    Returns:
        For every text a list of ``{"term", "score", "start", "end"}``; ``start`` and ``end`` are places in the text.

    Example (``folder`` is a saved miner):

    ```python
    from transformers import pipeline

    find_terms = pipeline("term-mining", model=folder, trust_remote_code=True)
    find_terms("用人单位变更劳动合同", top_k=1)
    ```
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, top_k: int | None = None, min_score: float | None = None):
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be positive")
        return {}, {}, {"top_k": top_k, "min_score": min_score}

    def preprocess(self, text: str) -> dict[str, Any]:
        if not isinstance(text, str):
            raise ValueError(f"the pipeline takes texts, got {type(text).__name__} {text!r:.80}")
        return {"text": text}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"found": self.model.find_terms(inputs["text"])}

    def postprocess(self, outputs: dict[str, Any], top_k: int | None = None, min_score: float | None = None) -> list[dict]:
        found = [row for row in outputs["found"] if min_score is None or row["score"] >= min_score]
        if top_k is None:
            return found
        best = {row["term"]: row for row in reversed(found)}  # a term once, where it stands first
        return sorted(best.values(), key=lambda row: (-row["score"], row["start"]))[:top_k]


__all__ = ["TermMiningPipeline"]
