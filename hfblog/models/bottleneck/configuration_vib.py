"""Configuration of classifiers and regressors with a variational information bottleneck."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_bottleneck import BottleneckConfig, check_choice, check_not_negative, check_positive

ENCODER_TYPES = ("mlp", "conv", "text_cnn", "auto")
EVAL_MODES = ("mean", "sample")
POOLINGS = ("mean", "max", "cls")


def build_encoder_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """A nested configuration from a dictionary with its ``model_type``.

    Raises:
        ValueError: there is no such type; the message names it.
    """
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ValueError("encoder_config names no model_type, such as 'bert'")
    try:
        return AutoConfig.for_model(model_type, **settings)
    except ValueError as error:
        if "Unrecognized model identifier" not in str(error):
            raise
        raise ValueError(f"encoder_config has model_type={model_type!r}, which is no model of transformers") from None


@strict
class VIBConfig(BottleneckConfig):
    r"""Configuration of a classifier or regressor whose features pass a bottleneck: ``-log q(y|z) + beta * rate``.

    Su Jianlin 2018, https://kexue.fm/archives/6181; Alemi et al. 2017, arXiv:1612.00410; over pretrained encoders Mahabadi et
    al. 2021, arXiv:2106.05469. Number and names of the classes are ``num_labels`` and ``id2label``; ``problem_type`` is
    ``"single_label_classification"``, ``"multi_label_classification"`` or ``"regression"``, by default the last for one label,
    the second for a table of floating point labels, and else the first.

    Args:
        encoder_type: ``"mlp"`` or ``"conv"`` (images), ``"text_cnn"`` (the article's), or ``"auto"``, the model of
            ``encoder_config``. By default ``"auto"`` where there is such a configuration, and else ``"mlp"`` for images and
            ``"text_cnn"`` for texts.
        encoder_config: configuration of any transformers model with a ``last_hidden_state``.
        pooling: how ``"auto"`` makes one vector of the states: ``"mean"`` or ``"max"`` over what is not padding, or
            ``"cls"``, the first.
        image_size: side in pixels, or ``(height, width)``; of ``"mlp"`` and ``"conv"``.
        num_channels: channels of the images.
        center_pixels: whether grey levels in [0, 1] are brought to [-1, 1] first, as in the paper.
        hidden_sizes: hidden layers of ``"mlp"``, and those after the convolutions of ``"conv"``.
        hidden_act: their activation.
        conv_channels, conv_kernel_size: convolutions of stride 2 of ``"conv"``.
        vocab_size, embedding_size, pad_token_id: of ``"text_cnn"``.
        num_filters, kernel_sizes: filters for each width of its convolution over the tokens.
        dropout: of the encoder's features, after every hidden layer.
        eval_mode: ``"mean"`` predicts from the mean code, ``"sample"`` by the mean probability over ``num_eval_samples``
            codes.
        latent_dim, bottleneck, beta, ...: see [`BottleneckConfig`].

    Example:

    ```python
    >>> from hfblog import VIBConfig
    >>> config = VIBConfig.from_preset("paper", bottleneck="dual", target_rate=10.0)
    >>> config.latent_dim, config.hidden_sizes
    (256, (1024, 1024))

    ```
    """

    model_type = "vib"
    sub_configs = {"encoder_config": AutoConfig}
    # what an evaluation by the Trainer need not gather
    keys_to_ignore_at_inference = ["task_loss", "rate", "mean", "scale", "latents"]
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_vib.VIBConfig",
        "AutoModelForImageClassification": "modeling_vib.VIBForImageClassification",
        "AutoModelForSequenceClassification": "modeling_vib.VIBForSequenceClassification",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Alemi et al. 2017, section 4.1
        "paper": {
            "encoder_type": "mlp",
            "hidden_sizes": (1024, 1024),
            "latent_dim": 256,
            "beta": 1e-3,
            "std_param": "softplus",
            "num_labels": 10,
        },
        # its codes in the plane
        "paper_2d": {
            "encoder_type": "mlp",
            "hidden_sizes": (1024, 1024),
            "latent_dim": 2,
            "posterior": "full",
            "beta": 1e-3,
            "std_param": "softplus",
            "num_labels": 10,
        },
        # cnn_imdb_vib.py of bojone/vib
        "article": {
            "encoder_type": "text_cnn",
            "embedding_size": 50,
            "num_filters": 250,
            "kernel_sizes": (3,),
            "latent_dim": 128,
            "beta": 0.1,
        },
    }

    encoder_type: str | None = None
    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str = "mean"
    image_size: int | list[int] | tuple[int, ...] = 28
    num_channels: int = 1
    center_pixels: bool = True
    hidden_sizes: list[int] | tuple[int, ...] = (1024, 1024)
    hidden_act: str = "relu"
    conv_channels: list[int] | tuple[int, ...] = (32, 64)
    conv_kernel_size: int = 3
    vocab_size: int = 8000
    embedding_size: int = 50
    pad_token_id: int | None = 0
    num_filters: int = 250
    kernel_sizes: list[int] | tuple[int, ...] = (3,)
    dropout: float | int = 0.0
    eval_mode: str = "mean"

    def __post_init__(self, **kwargs):
        if isinstance(self.encoder_config, dict):
            self.encoder_config = build_encoder_config(self.encoder_config)
        super().__post_init__(**kwargs)

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Size of the images in pixels."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)

    def validate_encoder(self):
        if self.encoder_type is not None:
            check_choice("encoder_type", self.encoder_type, ENCODER_TYPES)
            if (self.encoder_type == "auto") != (self.encoder_config is not None):
                raise ValueError(
                    f"encoder_type={self.encoder_type!r}: encoder_config is what 'auto' builds, and belongs to no other"
                )
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("eval_mode", self.eval_mode, EVAL_MODES)
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        check_positive(self, "image_size", "num_channels", "hidden_sizes", "conv_channels", "conv_kernel_size")
        check_positive(self, "vocab_size", "embedding_size", "num_filters", "kernel_sizes", "num_labels")
        check_not_negative(self, "dropout")
        if self.dropout >= 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size={self.image_size!r} must be one side or (height, width)")
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={self.conv_kernel_size} must be odd")
        if self.encoder_type == "text_cnn" and not self.kernel_sizes:
            raise ValueError("kernel_sizes must hold at least one width")


__all__ = ["VIBConfig"]
