"""Classifiers and regressors that state how many nats of the input they keep: the variational information bottleneck.

Su Jianlin 2018, https://kexue.fm/archives/6181; Alemi et al. 2017, arXiv:1612.00410. The loss is

    E_{x,y} E_{z ~ p(z|x)} [-log q(y|z)] + beta * E_x KL(p(z|x) || r(z)),

that of a variational autoencoder with the label in the place of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.logging import tqdm

from .configuration_vib import VIBConfig
from .encoders import ConvEncoder, MLPEncoder, PretrainedEncoder, TextCNNEncoder, drop_pooler
from .example_noise import keys_of_examples, normal_of_examples
from .variational_bottleneck import BottleneckOutput, VariationalBottleneck, draw_normal, init_bottleneck_weights


@dataclass
class VIBOutput(ModelOutput):
    """Output of the classifiers and regressors.

    Args:
        loss: scalar, task loss plus the penalty on the rate, in nats.
        logits: ``(batch, num_labels)``: logits, or the logarithm of the mean probability over several codes; the predicted
            values of a regression.
        task_loss: scalar, negative log-likelihood of the labels in nats; in training the mean over the codes, and otherwise
            that of ``logits``.
        rate: ``(batch,)``, KL(p(z|x) || r(z)) in nats; None for the deterministic twin.
        mean: ``(batch, K)``, mean codes.
        scale: standard deviations ``(batch, K)`` or Cholesky factors ``(batch, K, K)``.
        latents: ``(batch, samples, K)``, the codes that the logits were made of.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    rate: Tensor | None = None
    mean: Tensor | None = None
    scale: Tensor | None = None
    latents: Tensor | None = None


@dataclass
class InformationPlane(ModelOutput):
    """Where a model stands between what it keeps and what it predicts, in nats. Each bound is a mean over examples.

    Args:
        rate: upper bound on I(Z; X).
        rate_stderr: standard error of that mean.
        i_zx_lower: lower bound on I(Z; X), at most log N for N examples (van den Oord et al. 2018, arXiv:1807.03748, with
            the exact conditional densities); None for full covariances.
        i_zy_lower: lower bound on I(Z; Y), H(Y) minus the cross-entropy of single codes.
        i_zy_stderr: standard error of that cross-entropy.
        label_entropy: H(Y), by the labels' frequencies; as given for a regression.
        num_examples: N.
    """

    rate: float | None = None
    rate_stderr: float | None = None
    i_zx_lower: float | None = None
    i_zy_lower: float | None = None
    i_zy_stderr: float | None = None
    label_entropy: float | None = None
    num_examples: int | None = None


class VIBPreTrainedModel(PreTrainedModel):
    config_class = VIBConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules = ["VariationalBottleneck"]
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict = ["bottleneck.multiplier", "log_noise"]
    # The loss is a mean over the examples; transformers would otherwise divide it by a number of tokens.
    accepts_loss_kwargs = False

    def __init__(self, config: VIBConfig):
        super().__init__(config)
        if config.encoder_type is None:
            default = self.encoder_types[0]
            config.encoder_type = "auto" if config.encoder_config is not None else default
        if config.encoder_type not in self.encoder_types:
            raise ValueError(
                f"encoder_type={config.encoder_type!r} does not fit {type(self).__name__}; it must be one of "
                f"{', '.join(map(repr, self.encoder_types))}"
            )
        self.encoder = self.build_encoder(config)
        if config.encoder_type == "auto":
            self.main_input_name = self.encoder.model.main_input_name
            self.supports_gradient_checkpointing = self.encoder.model.supports_gradient_checkpointing
        if self.main_input_name != type(self).main_input_name:
            raise ValueError(
                f"encoder_config of {config.encoder_config.model_type!r} reads {self.main_input_name}, where "
                f"{type(self).__name__} gives {type(self).main_input_name}"
            )
        self.bottleneck = VariationalBottleneck(self.encoder.output_size, config.latent_dim, **config.layer_settings)
        self.classifier = nn.Linear(config.latent_dim, config.num_labels)
        # logarithm of the noise's standard deviation in each value of a regression
        noise = torch.zeros(config.num_labels, dtype=torch.float32)
        self.log_noise = nn.Parameter(noise) if self.is_regression else None
        self.post_init()

    @staticmethod
    def build_encoder(config: VIBConfig) -> nn.Module:
        if config.encoder_type == "auto":
            return PretrainedEncoder(config.encoder_config, config.pooling, config.dropout)
        if config.encoder_type == "text_cnn":
            return TextCNNEncoder(
                config.vocab_size,
                config.embedding_size,
                config.num_filters,
                config.kernel_sizes,
                config.pad_token_id,
                config.dropout,
            )
        shape = (config.num_channels, *config.height_and_width)
        if config.encoder_type == "mlp":
            return MLPEncoder(math.prod(shape), config.hidden_sizes, config.hidden_act, config.dropout)
        return ConvEncoder(
            shape, config.conv_channels, config.conv_kernel_size, config.hidden_sizes, config.hidden_act, config.dropout
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if init_bottleneck_weights(module):
            return
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):  # Keras' and the paper's
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.05, 0.05)
        if module is self and self.log_noise is not None:
            init.zeros_(self.log_noise)

    @classmethod
    def from_encoder_pretrained(cls, name: str, **settings: Any) -> VIBPreTrainedModel:
        """A new model over a pretrained encoder, which is fine-tuned with it.

        Args:
            name: Hub id or folder of a model with a ``last_hidden_state``.
            settings: fields of [`VIBConfig`].
        """
        encoder = AutoModel.from_pretrained(name)
        model = cls(VIBConfig(encoder_config=encoder.config, **settings))
        drop_pooler(encoder)
        model.encoder.model = encoder.train(model.training)
        return model

    # --- what kind of label ---

    @property
    def is_regression(self) -> bool:
        return (self.config.problem_type or ("regression" if self.config.num_labels == 1 else "")) == "regression"

    def is_multi_label(self, labels: Tensor | None = None) -> bool:
        """Whether any number of classes may hold at once: stated, or told by labels that are a table of numbers."""
        if self.config.problem_type is not None:
            return self.config.problem_type == "multi_label_classification"
        return labels is not None and not self.is_regression and labels.is_floating_point()

    def check_labels(self, labels: Tensor, batch_size: int) -> Tensor:
        """Labels of the shape and type that the loss takes.

        Raises:
            ValueError: another shape or type, a class out of range, a value that is not finite.
        """
        count = self.config.num_labels
        # looking at values would break a compiled graph, or wait for the accelerator
        look = not torch.compiler.is_compiling() and labels.device.type == "cpu" and labels.numel() > 0
        if self.is_regression or self.is_multi_label(labels):
            if labels.ndim == 1 and count == 1:
                labels = labels[:, None]
            if tuple(labels.shape) != (batch_size, count):
                hint = "" if self.is_regression else "; class ids are integers"
                raise ValueError(f"labels of {labels.dtype} must be ({batch_size}, {count}), got {tuple(labels.shape)}{hint}")
            if look and not torch.isfinite(labels).all():
                raise ValueError("labels hold NaN or infinite values")
            if look and not self.is_regression and not ((labels == 0) | (labels == 1)).all():
                raise ValueError(f"labels of several classes must be 0 or 1, got {labels.min():g} to {labels.max():g}")
            if self.config.problem_type is None and not self.is_regression:
                # as transformers does: predictions without labels, and a saved model, must know it
                self.config.problem_type = "multi_label_classification"
            return labels.float()
        if tuple(labels.shape) != (batch_size,) or labels.is_floating_point():
            raise ValueError(f"labels must be {batch_size} class ids, got {labels.dtype} of shape {tuple(labels.shape)}")
        if look and (labels.min() < 0 or labels.max() >= count):
            raise ValueError(
                f"labels lie in [{labels.min()}, {labels.max()}], but there are {count} classes, 0 to {count - 1}"
            )
        return labels.long()

    def negative_log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``-log q(y|z)`` in nats of each of the logits, ``(..., num_labels)`` and ``labels`` that broadcast to it.

        A regression has Gaussian noise with a learned scale; several classes are independent, and their nats add up.
        """
        if self.is_regression:
            scaled = (labels - logits) * (-self.log_noise.float()).exp()
            return (0.5 * scaled.square() + self.log_noise.float() + 0.5 * math.log(2 * math.pi)).sum(-1)
        if self.is_multi_label(labels):
            return F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none").sum(-1)
        return -logits.log_softmax(-1).gather(-1, labels.expand(logits.shape[:-1])[..., None]).squeeze(-1)

    def mean_prediction(self, logits: Tensor, is_multi_label: bool) -> Tensor:
        """Logits ``(batch, samples, num_labels)`` of single codes to those of the mean probability."""
        if logits.shape[1] == 1:
            return logits.squeeze(1)
        if self.is_regression:
            return logits.mean(1)
        if is_multi_label:
            count = math.log(logits.shape[1])
            return (F.logsigmoid(logits).logsumexp(1) - count) - (F.logsigmoid(-logits).logsumexp(1) - count)
        return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])

    # --- the way through ---

    def features(self, **inputs: Tensor | None) -> Tensor:
        """What the encoder makes of the inputs of `forward`, ``(batch, features)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define features")

    def keys(self, **inputs: Tensor | None) -> Tensor:
        """A number that tells each example from others, for noise of its own."""
        raise NotImplementedError(f"{type(self).__name__} does not define keys")

    def code(
        self,
        inputs: dict[str, Tensor | None],
        num_samples: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> BottleneckOutput:
        """Features through the bottleneck.

        Args:
            num_samples: codes an example; None takes the mean code.
            noise, generator: standard normal numbers, or where they come from. By default training draws them and evaluation
                takes those that an example's own values determine, so that it comes out the same in every batch.
        """
        features = self.features(**inputs)
        if not self.bottleneck.is_stochastic:
            return self.bottleneck(features)
        wants_mean = num_samples is None and noise is None
        if noise is None and (num_samples or self.bottleneck.needs_samples):
            shape = (num_samples or self.config.num_eval_samples, self.config.latent_dim)
            if self.training or generator is not None:
                noise = draw_normal((len(features), *shape), features, generator)
            else:
                noise = normal_of_examples(self.keys(**inputs), shape)
        found = self.bottleneck(features, noise=noise)
        if wants_mean:
            found.latents = found.mean[:, None]
        return found

    def logits_of(self, latents: Tensor) -> Tensor:
        """Codes ``(..., K)`` to logits ``(..., num_labels)`` in float32."""
        return self.classifier(latents.to(self.classifier.weight.dtype)).float()

    def predict(
        self, inputs: dict[str, Tensor | None], labels: Tensor | None, noise: Tensor | None, return_dict: bool | None
    ) -> VIBOutput | tuple:
        """The forward pass of images and texts."""
        config = self.config
        return_dict = return_dict if return_dict is not None else config.return_dict
        sampled = config.num_eval_samples if config.eval_mode == "sample" else None
        found = self.code(inputs, config.num_train_samples if self.training else sampled, noise)
        each = self.logits_of(found.latents)
        logits = self.mean_prediction(each, self.is_multi_label(labels))
        loss = task_loss = None
        if labels is not None:
            labels = self.check_labels(labels, len(logits))
            if self.training:
                task_loss = self.negative_log_likelihood(each, labels[:, None]).mean()
            else:
                task_loss = self.negative_log_likelihood(logits, labels).mean()
            loss = task_loss + found.penalty
        output = VIBOutput(
            loss=loss,
            logits=logits,
            task_loss=task_loss,
            rate=found.rate,
            mean=found.mean,
            scale=found.scale,
            latents=found.latents,
        )
        return output if return_dict else output.to_tuple()

    # --- what users ask ---

    @torch.no_grad()
    def encode(self, pixel_values: Tensor | None = None, **inputs: Tensor) -> BottleneckOutput:
        """Posterior and rate of each example; images, or a text's ``input_ids`` and so on by keyword."""
        return self.code(self.named_inputs(pixel_values, inputs))

    @torch.no_grad()
    def predict_proba(
        self,
        pixel_values: Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Probabilities of the classes, ``(batch, num_labels)``, the mean over ``num_samples`` codes.

        Args:
            pixel_values: images; a text's ``input_ids`` and so on go by keyword.
            num_samples: codes an example; by default ``num_eval_samples``. 0 predicts from the mean code.
            generator: of the codes; by default each example has noise of its own, the same in every call.

        Raises:
            ValueError: the model is a regression.
        """
        if self.is_regression:
            raise ValueError("a regression predicts values, not probabilities: call the model and read its logits")
        count = self.config.num_eval_samples if num_samples is None else num_samples
        if count < 0:
            raise ValueError(f"num_samples={count} must not be negative")
        found = self.code(self.named_inputs(pixel_values, inputs), count or None, generator=generator)
        each = self.logits_of(found.latents)
        return (each.sigmoid() if self.is_multi_label() else each.softmax(-1)).mean(1)

    def ood_score(self, pixel_values: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """How unusual each example is, ``(batch,)``: its rate in nats, by which its code stands out from the prior.

        Nothing forces inputs that resemble no training example to a high rate; look at the table of the model's card, or
        measure it on inputs of that kind, before relying on it.
        """
        rate = self.encode(pixel_values, **inputs).rate
        if rate is None:
            raise ValueError("bottleneck='none' has no rate to score with")
        return rate

    def named_inputs(self, pixel_values: Tensor | None, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs if pixel_values is None else {"pixel_values": pixel_values} | inputs

    @torch.no_grad()
    def information_plane(
        self,
        dataset: Any,
        batch_size: int = 256,
        data_collator: Any = None,
        num_samples: int | None = None,
        label_entropy: float | None = None,
        lower_bound_examples: int = 2000,
    ) -> InformationPlane:
        """Bounds in nats on what the code keeps of the input and of the label, over a data set.

        Args:
            dataset: examples as `forward` takes them, with ``labels``.
            batch_size: examples at a time.
            data_collator: makes a batch of examples, for texts one that pads them; stacks tensors by default.
            num_samples: codes an example; by default ``num_eval_samples``.
            label_entropy: H(Y) in nats, where the labels are numbers; classes are counted.
            lower_bound_examples: the first so many examples give the lower bound on I(Z; X); 0 for none.

        Raises:
            ValueError: an empty data set, no labels, or a regression without ``label_entropy``.
        """
        if not self.bottleneck.is_stochastic:
            raise ValueError("bottleneck='none' keeps what its encoder does: there is no bound on I(Z; X)")
        if self.is_regression and label_entropy is None:
            raise ValueError("a regression's labels have a differential entropy: give label_entropy in nats")
        count = num_samples or self.config.num_eval_samples
        rates, losses, labels, posteriors = [], [], [], []
        was_training = self.training
        self.eval()
        try:
            for batch in tqdm(DataLoader(dataset, batch_size, collate_fn=data_collator), "Information plane", unit="batch"):
                batch = {name: values.to(self.device) for name, values in batch.items()}
                if "labels" not in batch:
                    raise ValueError(f"the examples have no labels, only {', '.join(batch)}")
                found = self.code({name: values for name, values in batch.items() if name != "labels"}, count)
                targets = self.check_labels(batch["labels"], len(found.mean))
                nats = self.negative_log_likelihood(self.logits_of(found.latents), targets[:, None])
                rates.append(found.rate.double())
                losses.append(nats.mean(1).double())
                labels.append(targets)
                if sum(map(len, rates[:-1])) < lower_bound_examples and found.scale.ndim == 2:
                    posteriors.append((found.mean, found.scale, found.latents[:, 0]))
        finally:
            self.train(was_training)
        if not rates:
            raise ValueError("the data set is empty")
        rate, loss = torch.cat(rates), torch.cat(losses)
        entropy = label_entropy if label_entropy is not None else entropy_of_labels(torch.cat(labels))
        lower = None
        if posteriors:
            mean, scale, latents = (torch.cat(parts)[:lower_bound_examples] for parts in zip(*posteriors, strict=True))
            lower = mutual_information_lower(mean, scale, latents).item()
        return InformationPlane(
            rate=rate.mean().item(),
            rate_stderr=rate.std().item() / math.sqrt(len(rate)),
            i_zx_lower=lower,
            i_zy_lower=entropy - loss.mean().item(),
            i_zy_stderr=loss.std().item() / math.sqrt(len(loss)),
            label_entropy=entropy,
            num_examples=len(rate),
        )


def entropy_of_labels(labels: Tensor) -> float:
    """Entropy in nats of the frequencies: of class ids ``(N,)``, or the sum over the columns of a table of zeros and ones."""
    if labels.ndim == 1:
        shares = labels.bincount().double() / len(labels)
        return torch.special.entr(shares).sum().item()
    shares = labels.double().mean(0)
    return (torch.special.entr(shares) + torch.special.entr(1 - shares)).sum().item()


def mutual_information_lower(mean: Tensor, scale: Tensor, latents: Tensor, chunk: int = 256) -> Tensor:
    """``E log p(z_i|x_i) / (1/N sum_j p(z_i|x_j))`` in nats, at most log N, from one code ``(N, K)`` of each example.

    A lower bound on I(Z; X) by its expectation (Poole et al. 2019, arXiv:1905.06922, equation 12).
    """
    mean, scale, latents = mean.double(), scale.double(), latents.double()
    weights = scale.square().reciprocal()
    constant = 0.5 * (mean.square() * weights).sum(1) + scale.log().sum(1)
    found = []
    for start in range(0, len(latents), chunk):
        z = latents[start : start + chunk]
        log_density = z @ (mean * weights).T - 0.5 * z.square() @ weights.T - constant
        own = log_density.diagonal(start)
        found.append(own - (log_density.logsumexp(1) - math.log(len(mean))))
    return torch.cat(found).mean()


class VIBForImageClassification(VIBPreTrainedModel):
    r"""Image classifier, or regressor with ``problem_type="regression"``, through a bottleneck.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import VIBConfig, VIBForImageClassification
    >>> model = VIBForImageClassification(VIBConfig.from_preset("paper", bottleneck="dual", target_rate=10.0)).eval()
    >>> images, labels = torch.rand(2, 1, 28, 28), torch.tensor([3, 7])
    >>> output = model(images, labels=labels)
    >>> output.logits.shape, output.rate.shape, model.predict_proba(images, num_samples=12).shape
    (torch.Size([2, 10]), torch.Size([2]), torch.Size([2, 10]))

    ```
    """

    _auto_class = "AutoModelForImageClassification"
    encoder_types = ("mlp", "conv", "auto")

    def features(self, pixel_values: Tensor) -> Tensor:
        config = self.config
        if config.encoder_type == "auto":
            return self.encoder(pixel_values=pixel_values)
        expected = (config.num_channels, *config.height_and_width)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values must be (batch, channels, height, width) = (batch, {', '.join(map(str, expected))}), got "
                f"{tuple(pixel_values.shape)}"
            )
        return self.encoder(2 * pixel_values - 1 if config.center_pixels else pixel_values)

    def keys(self, pixel_values: Tensor) -> Tensor:
        return keys_of_examples(pixel_values)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> VIBOutput | tuple:
        """Predictions, and with labels the loss.

        Args:
            pixel_values: ``(batch, channels, height, width)`` in [0, 1], as the image processor gives it.
            labels: class ids ``(batch,)``; ``(batch, num_labels)`` zeros and ones for several classes, or numbers for a
                regression.
            noise: standard normal numbers ``(batch, samples, K)``, if the caller wants to state them.
            return_dict: a [`VIBOutput`], or a tuple of its fields that are not None.

        Raises:
            ValueError: images or labels that do not fit the configuration.
        """
        return self.predict({"pixel_values": pixel_values}, labels, noise, return_dict)


class VIBForSequenceClassification(VIBPreTrainedModel):
    r"""Text classifier, or regressor with ``problem_type="regression"``, through a bottleneck.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import VIBConfig, VIBForSequenceClassification
    >>> model = VIBForSequenceClassification(VIBConfig.from_preset("article", vocab_size=100)).eval()
    >>> ids, mask = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    >>> model(ids, attention_mask=mask, labels=torch.tensor([0, 1])).logits.shape
    torch.Size([2, 2])

    ```
    """

    _auto_class = "AutoModelForSequenceClassification"
    main_input_name = "input_ids"
    encoder_types = ("text_cnn", "auto")

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.model.get_input_embeddings() if self.config.encoder_type == "auto" else self.encoder.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        if self.config.encoder_type == "auto":
            self.encoder.model.set_input_embeddings(value)
        else:
            self.encoder.embeddings = value

    def features(self, **inputs: Tensor | None) -> Tensor:
        given = {name: value for name, value in inputs.items() if value is not None}
        if ("input_ids" in given) == ("inputs_embeds" in given):
            raise ValueError("give either input_ids or inputs_embeds")
        if self.config.encoder_type == "text_cnn":
            given.pop("token_type_ids", None)
        return self.encoder(**given)

    def keys(self, **inputs: Tensor | None) -> Tensor:
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None:
            ids = inputs["inputs_embeds"]
            mask = None if mask is None else mask[..., None].expand_as(ids)
        elif mask is None and self.config.encoder_type == "text_cnn" and self.config.pad_token_id is not None:
            mask = ids != self.config.pad_token_id
        return keys_of_examples(ids, mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> VIBOutput | tuple:
        """Predictions, and with labels the loss.

        Args:
            input_ids, attention_mask, token_type_ids, inputs_embeds: of the encoder, ``(batch, tokens)``.
            labels, noise, return_dict: as in [`VIBForImageClassification`].
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self.predict(inputs, labels, noise, return_dict)


__all__ = ["InformationPlane", "VIBForImageClassification", "VIBForSequenceClassification", "VIBOutput"]
