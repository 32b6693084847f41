"""What every flow's configuration shares: the event, its quantisation, the prior, and what travels to the Hub.

No ``from __future__ import annotations`` in configuration files: `strict` reads the annotations as objects, and checks no
type where it finds strings.
"""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

PRIORS = ("normal", "logistic", "diagonal")
DEQUANTIZATIONS = ("uniform", "blog", "none")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise a ``ValueError`` that names the wrong value and the accepted ones."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; it must be one of {', '.join(map(repr, choices))}")


@strict
class FlowConfig(PreTrainedConfig):
    r"""Fields shared by all density models of this family.

    Args:
        event_shape: shape of one example without the batch axis, ``(channels, height, width)`` for images.
        num_levels: number of grey levels per channel, K. The density is that of ``x = (k + u) / K`` for level ``k``.
            ``None`` for data that were never quantised; then there are no bits per dimension.
        dequantization: ``"uniform"`` adds ``u ~ U(0, 1)`` to the level, in training and evaluation (a valid bound on
            the discrete likelihood; Theis et al. 2016, arXiv:1511.01844). ``"blog"`` is the article's noise: the
            training input is ``k / (K - 1) - noise_width * u``, evaluation has none. ``"none"`` leaves the input as it is.
        noise_width: width of the ``"blog"`` noise.
        prior: ``"normal"``, ``"logistic"`` (both standard) or ``"diagonal"`` (normal with learned mean and scale).
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    auto_classes: ClassVar[dict[str, str]] = {}
    custom_pipeline: ClassVar[dict[str, Any]] = {
        "unconditional-image-generation": {
            "impl": "pipeline_flow.UnconditionalImageGenerationPipeline",
            "pt": ["AutoModel"],
            "type": "image",
        }
    }
    _auto_class = "AutoConfig"

    event_shape: list[int] | tuple[int, ...] = (1, 28, 28)
    num_levels: int | None = 256
    dequantization: str = "uniform"
    noise_width: float | int = 0.01
    prior: str = "logistic"

    def __post_init__(self, **kwargs):
        # Set anew on every load: references that came from a Hub repository carry its name, and would keep pointing there.
        kwargs.pop("auto_map", None)
        custom_pipelines = kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self.auto_map = dict(self.auto_classes)
        # transformers asks for trust_remote_code wherever a loaded configuration names custom pipelines. The installed
        # package has registered its own, so only the copy that runs as remote code keeps the attribute.
        if custom_pipelines and type(self).__module__.startswith("transformers_modules"):
            self.custom_pipelines = custom_pipelines

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "FlowConfig":
        """A named configuration, with single fields replaced by ``overrides``."""
        check_choice("preset", name, tuple(cls.presets))
        return cls(**(cls.presets[name] | overrides))

    @property
    def event_size(self) -> int:
        """Number of dimensions D of one example."""
        return math.prod(self.event_shape)

    def to_dict(self) -> dict[str, Any]:
        draws_images = len(self.event_shape) == 3
        return super().to_dict() | ({"custom_pipelines": self.custom_pipeline} if draws_images else {})

    def validate_event(self):
        if not self.event_shape or any(size < 1 for size in self.event_shape):
            raise ValueError(f"event_shape={self.event_shape!r} must hold one or more positive sizes")

    def validate_quantization(self):
        check_choice("dequantization", self.dequantization, DEQUANTIZATIONS)
        if self.num_levels is not None and self.num_levels < 2:
            raise ValueError(f"num_levels={self.num_levels} must be at least 2, or None for data that were not quantised")
        if self.num_levels is None and self.dequantization == "uniform":
            raise ValueError('dequantization="uniform" needs num_levels; use dequantization="none" for continuous data')
        if not 0 < self.noise_width < math.inf:
            raise ValueError(f"noise_width={self.noise_width} must be positive and finite")

    def validate_prior(self):
        check_choice("prior", self.prior, PRIORS)


__all__ = ["FlowConfig"]
