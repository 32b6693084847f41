"""Configuration of the NICE flow."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from .configuration_flow import FlowConfig, check_choice

PARTITIONS = ("interleaved", "half")
PERMUTATIONS = ("reverse", "random", "swap")
SCALE_INITS = ("data", "zeros", "glorot")
COUPLING_INITS = ("zeros", "glorot", "uniform")
COUPLING_OUTPUT_ACTS = (None, "relu")


@strict
class NiceFlowConfig(FlowConfig):
    r"""Configuration of a [`NiceFlowModel`]: additive couplings and one diagonal scaling.

    ``NiceFlowConfig.from_preset("paper")`` is the network of Dinh et al. 2015 (arXiv:1410.8516, section 5.1, MNIST);
    ``NiceFlowConfig.from_preset("article")`` that of https://kexue.fm/archives/5776 (19,158,352 parameters).

    Args:
        event_shape, num_levels, dequantization, noise_width, prior: see [`FlowConfig`].
        num_coupling_layers: number of additive couplings L. Three or more let every input reach every output.
        hidden_size: width of each coupling network m.
        num_hidden_layers: hidden layers of each m (its output layer not counted).
        hidden_act: name of an activation of `transformers.activations`.
        coupling_output_act: ``None`` (linear, the paper) or ``"relu"`` (the article, so that m >= 0).
        coupling_sign: +1 (the paper: encoding adds m) or -1 (the article: encoding subtracts it, decoding adds).
        partition: ``"interleaved"`` (even and odd positions) or ``"half"``.
        permutation: what happens between couplings. ``"reverse"`` flips the order of all dimensions before every
            coupling (the article; needs an even number of dimensions), ``"swap"`` exchanges the roles of the two parts
            (the paper), ``"random"`` exchanges them and shuffles each, after one shuffle of all dimensions.
        permutation_seed: seed of the random order; the drawn order is stored with the weights.
        scale_init: ``"data"`` (by [`~NiceFlowModel.initialize`]: every latent starts with the prior's standard
            deviation), ``"zeros"`` or ``"glorot"`` (the article).
        log_scale_factor: the log-scale is this factor times the stored parameter, so that one learning rate serves all
            parameters: Adam moves a log-scale by this factor times the rate per step.
        coupling_init: ``"zeros"`` (output layer zero: the flow starts as a permutation and a scaling), ``"glorot"``
            (the article) or ``"uniform"`` in ``[-initializer_range, initializer_range]`` (the paper).
        initializer_range: see ``coupling_init``.

    Example:

    ```python
    >>> from hfblog import NiceFlowConfig, NiceFlowModel
    >>> config = NiceFlowConfig(event_shape=(1, 8, 8), num_levels=17, hidden_size=64, num_hidden_layers=2)
    >>> NiceFlowModel(config).sample(4).shape
    torch.Size([4, 1, 8, 8])

    ```
    """

    model_type = "nice_flow"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_nice_flow.NiceFlowConfig",
        "AutoImageProcessor": "image_processing_flow.FlowImageProcessor",
        "AutoModel": "modeling_nice_flow.NiceFlowModel",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "permutation": "swap",
            "prior": "logistic",
            "scale_init": "zeros",
            "log_scale_factor": 1.0,
            "coupling_init": "uniform",
        },
        "article": {
            "coupling_output_act": "relu",
            "coupling_sign": -1,
            "permutation": "reverse",
            "prior": "normal",
            "scale_init": "glorot",
            "log_scale_factor": 1.0,
            "coupling_init": "glorot",
            "dequantization": "blog",
        },
    }

    num_coupling_layers: int = 4
    hidden_size: int = 1000
    num_hidden_layers: int = 5
    hidden_act: str = "relu"
    coupling_output_act: str | None = None
    coupling_sign: int = 1
    partition: str = "interleaved"
    permutation: str = "swap"
    permutation_seed: int = 0
    scale_init: str = "data"
    log_scale_factor: float | int = 10.0
    coupling_init: str = "zeros"
    initializer_range: float | int = 0.01

    def validate_couplings(self):
        check_choice("partition", self.partition, PARTITIONS)
        check_choice("permutation", self.permutation, PERMUTATIONS)
        check_choice("scale_init", self.scale_init, SCALE_INITS)
        check_choice("coupling_init", self.coupling_init, COUPLING_INITS)
        check_choice("coupling_output_act", self.coupling_output_act, COUPLING_OUTPUT_ACTS)
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        check_choice("coupling_sign", self.coupling_sign, (1, -1))
        for name in ("num_coupling_layers", "hidden_size", "num_hidden_layers", "log_scale_factor", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")

    def validate_order(self):
        if self.event_size < 2:
            raise ValueError(f"event_shape={self.event_shape!r} has {self.event_size} dimension; a coupling splits at least 2")
        if self.permutation == "reverse" and self.event_size % 2:
            raise ValueError(
                f"permutation='reverse' needs an even number of dimensions, but event_shape={self.event_shape!r} has "
                f"{self.event_size}: reversal then keeps every role and leaves dimensions unmoved. Use 'swap' or 'random'."
            )


__all__ = ["NiceFlowConfig"]
