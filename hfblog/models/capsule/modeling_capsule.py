"""Capsule networks: classes as the centres of a soft K-means over an example's own vectors.

Su Jianlin 2018, https://kexue.fm/archives/5112 (routing as K-means) and https://kexue.fm/archives/4819; Sabour, Frosst, Hinton
2017, "Dynamic Routing Between Capsules", https://arxiv.org/abs/1710.09829.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_capsule import CapsuleConfig
from .routing import FullPredictions, Predictions, SharedPredictions, route, routing_objective, squash


@dataclass
class CapsuleLayerOutput(ModelOutput):
    """What a [`CapsuleLayer`] found.

    Args:
        capsules: ``(batch, k, D)``, squashed.
        routing_weights: ``(batch, k, n)``, the last coupling: each input's shares sum to 1 over the k capsules, and are 0
            where it is masked.
        routing_objective: ``(batch, iterations)``, see `routing_objective`, after every iteration.
    """

    capsules: Tensor | None = None
    routing_weights: Tensor | None = None
    routing_objective: Tensor | None = None


@dataclass
class CapsuleModelOutput(CapsuleLayerOutput):
    """Capsules of an image or a text.

    Args:
        capsules, routing_weights, routing_objective: see [`CapsuleLayerOutput`].
        lengths: ``(batch, k)`` in [0, 1), how much of each class there is. Not a distribution.
    """

    lengths: Tensor | None = None


@dataclass
class CapsuleClassifierOutput(ModelOutput):
    """Output of the classifiers.

    Args:
        loss: margin loss, a mean over the examples, with the reconstruction's where there is a decoder.
        logits: ``(batch, num_labels)``, the lengths of the capsules in [0, 1). They are scores of one detector a class, not
            logits of a softmax.
        capsules, routing_weights, routing_objective: see [`CapsuleLayerOutput`].
        reconstruction: ``(batch, channels, height, width)`` in [0, 1], from the capsules of the labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    capsules: Tensor | None = None
    reconstruction: Tensor | None = None
    routing_weights: Tensor | None = None
    routing_objective: Tensor | None = None


def capsule_lengths(capsules: Tensor, eps: float = 1e-7) -> Tensor:
    """Lengths ``(..., k)`` of capsules ``(..., k, D)``, with a finite gradient at 0."""
    return (capsules.square().sum(-1) + eps).sqrt()


def multi_hot(labels: Tensor, num_labels: int, batch_size: int) -> Tensor:
    """Labels as a table of zeros and ones.

    Args:
        labels: class ids ``(batch,)``, or a table ``(batch, num_labels)`` already.
        num_labels: number of classes.
        batch_size: number of examples.

    Raises:
        ValueError: another shape, or a class or entry out of range.
    """
    if labels.ndim in (1, 2) and len(labels) != batch_size:
        raise ValueError(f"there are labels of {len(labels)} examples, but {batch_size} examples")
    # looking at values would break a compiled graph, or wait for the accelerator
    look = not torch.compiler.is_compiling() and labels.device.type == "cpu"
    if labels.ndim == 2:
        if labels.shape[1] != num_labels:
            raise ValueError(f"multi-hot labels have {labels.shape[1]} columns, but there are {num_labels} classes")
        wrong = labels[(labels != 0) & (labels != 1)] if look else ()
        if len(wrong):
            raise ValueError(f"multi-hot labels must hold zeros and ones, got {wrong[0].item()}")
        return labels.float()
    if labels.ndim != 1:
        raise ValueError(f"labels must be class ids (batch,) or a table (batch, {num_labels}), got {tuple(labels.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"class ids must be integers, got {labels.dtype}")
    if look and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_labels:
            raise ValueError(f"labels lie in [{low}, {high}], but there are {num_labels} classes, 0 to {num_labels - 1}")
    return F.one_hot(labels.long(), num_labels).float()


def margin_loss(
    lengths: Tensor, targets: Tensor, positive: float = 0.9, negative: float = 0.1, negative_weight: float = 0.5
) -> Tensor:
    """``sum_c T_c max(0, m+ - |v_c|)^2 + lambda (1 - T_c) max(0, |v_c| - m-)^2``, the mean over the examples.

    Sabour et al. 2017, equation 4: one binary detector a class, so any number of classes may be there.

    Args:
        lengths: ``(batch, k)``.
        targets: T, ``(batch, k)`` of zeros and ones.
        positive, negative, negative_weight: m+, m- and lambda.
    """
    present = (positive - lengths).clamp_min(0).square()
    absent = (lengths - negative).clamp_min(0).square()
    return (targets * present + negative_weight * (1 - targets) * absent).sum(1).mean()


class CapsuleLayer(nn.Module):
    r"""Routes n vectors to k capsules; on its own, for example, over the tokens of a BERT.

    Args:
        input_dim: numbers f of an input vector.
        num_capsules: k.
        capsule_dim: numbers D of a capsule.
        weight_layout, num_input_capsules, factor_dim, routing_type, routing_iterations, squash_type, squash_constant,
            routing_temperature, detach_routing, initializer_range: see [`CapsuleConfig`].

    Example:

    ```python
    >>> import torch
    >>> from hfblog import CapsuleLayer
    >>> layer = CapsuleLayer(input_dim=32, num_capsules=5, capsule_dim=8)
    >>> tokens, mask = torch.randn(2, 7, 32), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    >>> output = layer(tokens, attention_mask=mask, output_routing_weights=True)
    >>> output.capsules.shape, output.routing_weights.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 7]))

    ```
    """

    def __init__(
        self,
        input_dim: int,
        num_capsules: int,
        capsule_dim: int,
        *,
        weight_layout: str = "shared",
        num_input_capsules: int | None = None,
        factor_dim: int | None = None,
        routing_type: str = "kmeans",
        routing_iterations: int = 3,
        squash_type: str = "squash",
        squash_constant: float = 0.5,
        routing_temperature: float = 1.0,
        detach_routing: bool = False,
        initializer_range: float | None = None,
    ):
        super().__init__()
        settings = {
            "routing_type": routing_type,
            "squash_type": squash_type,
            "squash_constant": squash_constant,
        }
        CapsuleConfig(  # for its checks
            conv_channels=[input_dim],
            pool_after=None,
            num_labels=num_capsules,
            capsule_dim=capsule_dim,
            weight_layout=weight_layout,
            num_input_capsules=num_input_capsules,
            factor_dim=factor_dim,
            routing_iterations=routing_iterations,
            routing_temperature=routing_temperature,
            initializer_range=initializer_range,
            **settings,
        )
        self.input_dim = input_dim
        self.weight_layout = weight_layout
        self.num_input_capsules = None if weight_layout == "shared" else num_input_capsules
        self.temperature = routing_temperature
        self.settings = settings | {"iterations": routing_iterations, "detach": detach_routing}
        self.initializer_range = initializer_range
        size = factor_dim or input_dim
        self.factors = nn.Parameter(torch.empty(num_input_capsules, input_dim, size)) if weight_layout == "factored" else None
        count = (num_input_capsules,) if weight_layout == "full" else ()
        self.weight = nn.Parameter(torch.empty(*count, size, num_capsules, capsule_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        size, num_capsules, capsule_dim = self.weight.shape[-3:]
        init.normal_(self.weight, std=self.initializer_range or math.sqrt(2 / (size + num_capsules * capsule_dim)))
        if self.factors is not None:
            init.normal_(self.factors, std=self.input_dim**-0.5)

    def extra_repr(self) -> str:
        num_capsules, capsule_dim = self.weight.shape[-2:]
        routing = f"{self.settings['routing_type']} x {self.settings['iterations']}"
        return f"{self.input_dim}, {num_capsules} x {capsule_dim}, weight_layout={self.weight_layout!r}, routing={routing}"

    def check_inputs(self, inputs: Tensor, attention_mask: Tensor | None) -> None:
        if inputs.ndim != 3 or inputs.shape[2] != self.input_dim:
            raise ValueError(f"inputs must be (batch, n, {self.input_dim}), got {tuple(inputs.shape)}")
        known, given = self.num_input_capsules, inputs.shape[1]
        if known is not None and (given > known if attention_mask is not None else given != known):
            raise ValueError(
                f"weight_layout={self.weight_layout!r} has matrices for {known} inputs, but {given} were given; only 'shared' "
                "weights take any number"
            )
        if attention_mask is None:
            return
        if attention_mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"attention_mask must be (batch, n) = {tuple(inputs.shape[:2])}, got {tuple(attention_mask.shape)}"
            )
        # looking at values would break a compiled graph, or wait for the accelerator
        if not torch.compiler.is_compiling() and attention_mask.device.type == "cpu":
            empty = (attention_mask == 0).all(1).nonzero().flatten().tolist()
            if empty:
                raise ValueError(f"attention_mask hides every input of row {empty[0]}: there is nothing to route")

    def predictions(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Predictions:
        """The images of the inputs as `route` and `routing_objective` take them; arguments as in `forward`."""
        self.check_inputs(inputs, attention_mask)
        given = inputs.shape[1]
        if self.weight_layout == "full":
            return FullPredictions(inputs, self.weight[:given], attention_mask)
        if self.factors is not None:
            inputs = torch.einsum("bif,ifg->big", inputs, self.factors[:given])
        return SharedPredictions(inputs, self.weight, attention_mask)

    def forward(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        output_routing_weights: bool = False,
        output_routing_objective: bool = False,
    ) -> CapsuleLayerOutput:
        """Cluster the inputs of each example.

        Args:
            inputs: ``(batch, n, f)``.
            attention_mask: ``(batch, n)``, 0 at inputs that do not count. Under weights for each input n may be smaller than
                their number only with a mask.
            output_routing_weights, output_routing_objective: whether the output has those fields.

        Raises:
            ValueError: a shape that does not fit, or a row without any input.
        """
        predictions = self.predictions(inputs, attention_mask)
        trace = route(predictions, temperature=self.temperature, **self.settings)
        weights = objective = None
        if output_routing_weights:
            shape = (*inputs.shape[:2], self.weight.shape[-2])
            uniform = trace.sums.new_full(shape, 1 / shape[2])
            coupling = predictions.masked(uniform) if trace.query is None else predictions.coupling(trace.query)
            weights = coupling.mT
        if output_routing_objective:
            steps = [routing_objective(predictions, direction, self.temperature) for direction in trace.directions]
            objective = torch.stack(steps, 1)
        return CapsuleLayerOutput(
            capsules=squash(trace.sums, self.settings["squash_type"], self.settings["squash_constant"]),
            routing_weights=weights,
            routing_objective=objective,
        )


class MeanPooling(nn.Module):
    """What capsules are compared with: the mean of the inputs, one hidden layer, a sigmoid a class.

    The hidden layer has about as many weights as the routing layer with shared weights. The outputs stand as capsules of one
    number.
    """

    def __init__(self, config: CapsuleConfig):
        super().__init__()
        f, k = config.input_dim, config.num_labels
        hidden_size = max(1, round((f * k * config.capsule_dim - k) / (f + 1 + k)))
        self.hidden = nn.Linear(f, hidden_size)
        self.output = nn.Linear(hidden_size, k)

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> CapsuleLayerOutput:
        if attention_mask is None:
            mean = inputs.mean(1)
        else:
            shares = attention_mask.to(inputs.dtype)
            mean = torch.einsum("bi,bif->bf", shares, inputs) / shares.sum(1, keepdim=True).clamp_min(1)
        return CapsuleLayerOutput(capsules=self.output(F.relu(self.hidden(mean))).sigmoid()[..., None])


class CapsuleConvolutions(nn.Module):
    """Images to the vectors of their places, or to primary capsules."""

    def __init__(self, config: CapsuleConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList()
        channels = config.num_channels
        for size, kernel, stride in config.convolutions():
            padding = kernel // 2 if config.conv_padding else 0
            self.layers.append(nn.Conv2d(channels, size, kernel, stride, padding))
            channels = size

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to ``(batch, n, f)``."""
        config = self.config
        x = pixel_values.to(self.layers[0].weight.dtype)
        for index, layer in enumerate(self.layers, 1):
            # channels last: convolutions are a third faster on a CPU, and the places' vectors lie together in the end
            x = layer(x).contiguous(memory_format=torch.channels_last)
            if config.primary_capsule_dim is None or index < len(self.layers):
                x = F.relu(x)
            if index == config.pool_after:
                x = F.avg_pool2d(x, 2)
        if config.primary_capsule_dim is None:
            return x.flatten(2).mT
        capsules = x.flatten(2).unflatten(1, (-1, config.primary_capsule_dim)).transpose(2, 3).flatten(1, 2)
        return squash(capsules.float(), config.squash_type, config.squash_constant).to(capsules.dtype)


class CapsuleDecoder(nn.Module):
    """The paper's decoder: the capsules of the wanted classes, all others set to 0, to an image."""

    def __init__(self, config: CapsuleConfig):
        super().__init__()
        self.image_shape = (config.num_channels, *config.height_and_width)
        sizes = [config.num_labels * config.capsule_dim, *config.decoder_hidden_sizes, math.prod(self.image_shape)]
        self.layers = nn.ModuleList(nn.Linear(size, following) for size, following in zip(sizes, sizes[1:], strict=False))

    def forward(self, capsules: Tensor, wanted: Tensor) -> Tensor:
        """``(batch, k, D)`` and a table ``(batch, k)`` of zeros and ones to ``(batch, *image_shape)`` in [0, 1]."""
        x = (capsules * wanted[..., None]).flatten(1).to(self.layers[0].weight.dtype)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).sigmoid().unflatten(1, self.image_shape)


class CapsulePreTrainedModel(PreTrainedModel):
    config_class = CapsuleConfig
    base_model_prefix = "capsule"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules = ["CapsuleLayer"]
    _can_compile_fullgraph = True
    # The loss is a mean over the examples; transformers would otherwise divide it by a number of tokens.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CapsuleLayer):
            module.reset_parameters()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_encoder_pretrained(cls, name: str, **settings: Any) -> CapsulePreTrainedModel:
        """A new model over a pretrained encoder, which is fine-tuned with it.

        Args:
            name: Hub id or folder of a model with a ``last_hidden_state``.
            settings: fields of [`CapsuleConfig`].
        """
        encoder = AutoModel.from_pretrained(name)
        model = cls(CapsuleConfig(encoder_config=encoder.config, **settings))
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        getattr(model, model.base_model_prefix, model).encoder = encoder
        return model


class CapsuleModel(CapsulePreTrainedModel):
    r"""Convolutions, or an encoder, and one capsule a class.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import CapsuleConfig, CapsuleModel
    >>> model = CapsuleModel(CapsuleConfig(num_labels=10)).eval()
    >>> output = model(torch.rand(2, 1, 56, 28), output_routing_weights=True, output_routing_objective=True)
    >>> output.capsules.shape, output.lengths.shape, output.routing_weights.shape, output.routing_objective.shape
    (torch.Size([2, 10, 16]), torch.Size([2, 10]), torch.Size([2, 10, 176]), torch.Size([2, 3]))

    ```
    """

    _auto_class = "AutoModel"

    def __init__(self, config: CapsuleConfig):
        super().__init__(config)
        if config.encoder_config is None:
            self.encoder = CapsuleConvolutions(config)
        else:
            self.encoder = AutoModel.from_config(config.encoder_config)
            config.encoder_config.dtype = self.encoder.dtype  # as loading sets it: a saved configuration comes back equal
            self.main_input_name = self.encoder.main_input_name
            self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
            if getattr(self.encoder, "pooler", None) is not None:
                self.encoder.pooler = None  # its output is not used, and processes would wait for its gradient
        if config.pooling == "mean":
            self.layer = MeanPooling(config)
        else:
            self.layer = CapsuleLayer(
                config.input_dim,
                config.num_labels,
                config.capsule_dim,
                weight_layout=config.weight_layout,
                num_input_capsules=config.num_input_capsules,
                factor_dim=config.factor_dim,
                routing_type=config.routing_type,
                routing_iterations=config.routing_iterations,
                squash_type=config.squash_type,
                squash_constant=config.squash_constant,
                routing_temperature=config.routing_temperature,
                detach_routing=config.detach_routing,
                initializer_range=config.initializer_range,
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        if self.config.encoder_config is None:
            raise NotImplementedError("images have no input embeddings")
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def check_images(self, pixel_values: Tensor) -> None:
        config = self.config
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values must be (batch, {config.num_channels}, height, width), got {tuple(pixel_values.shape)}"
            )
        given, known = tuple(pixel_values.shape[2:]), config.height_and_width
        if known is not None and given != known and config.weight_layout != "shared" and config.pooling != "mean":
            raise ValueError(
                f"weight_layout={config.weight_layout!r} has a matrix for each place of an image of {known[0]}x{known[1]} "
                f"pixels (height x width), got {given[0]}x{given[1]}; only 'shared' weights take images of any size"
            )
        config.conv_output_size(*given)

    def input_capsules(self, **inputs: Tensor | None) -> Tensor:
        """The vectors ``(batch, n, f)`` that are routed, from the arguments of `forward`."""
        given = {name: value for name, value in inputs.items() if value is not None}
        if self.config.encoder_config is not None:
            return self.encoder(**given).last_hidden_state
        if set(given) != {"pixel_values"}:
            raise ValueError(f"a model without encoder_config takes pixel_values, got {', '.join(given) or 'nothing'}")
        self.check_images(given["pixel_values"])
        return self.encoder(given["pixel_values"])

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_routing_weights: bool = False,
        output_routing_objective: bool = False,
        return_dict: bool | None = None,
    ) -> CapsuleModelOutput | tuple:
        """Capsules of images or texts.

        Args:
            pixel_values: ``(batch, channels, height, width)`` in [0, 1].
            input_ids, attention_mask, token_type_ids, inputs_embeds: of the encoder, ``(batch, n)``.
            output_routing_weights, output_routing_objective: whether the output has those fields.
            return_dict: a [`CapsuleModelOutput`], or a tuple of its fields that are not None.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        inputs = self.input_capsules(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
        )
        found = self.layer(
            inputs,
            attention_mask=attention_mask,
            output_routing_weights=output_routing_weights,
            output_routing_objective=output_routing_objective,
        )
        output = CapsuleModelOutput(**found, lengths=capsule_lengths(found.capsules))
        return output if return_dict else output.to_tuple()


class CapsuleClassifier(CapsulePreTrainedModel):
    """What classifiers of images and of texts share."""

    def __init__(self, config: CapsuleConfig):
        super().__init__(config)
        self.capsule = CapsuleModel(config)
        self.main_input_name = self.capsule.main_input_name
        self.supports_gradient_checkpointing = self.capsule.supports_gradient_checkpointing
        self.decoder = CapsuleDecoder(config) if config.use_decoder else None
        self.post_init()

    def classify(
        self, inputs: dict[str, Any], labels: Tensor | None, return_dict: bool | None
    ) -> CapsuleClassifierOutput | tuple:
        """`CapsuleModel.forward`, and the losses where there are labels."""
        config = self.config
        return_dict = return_dict if return_dict is not None else config.return_dict
        found = self.capsule(**inputs, return_dict=True)
        loss = reconstruction = None
        if labels is not None:
            targets = multi_hot(labels, config.num_labels, len(found.lengths))
            loss = margin_loss(
                found.lengths.float(), targets, config.margin_positive, config.margin_negative, config.margin_lambda
            )
            if self.decoder is not None:
                pixel_values = inputs["pixel_values"]
                if tuple(pixel_values.shape[2:]) != config.height_and_width:
                    raise ValueError(
                        f"the decoder draws images of {config.height_and_width} pixels, got {tuple(pixel_values.shape[2:])}"
                    )
                reconstruction = self.decoder(found.capsules, targets)
                squared = (reconstruction.float() - pixel_values).square().flatten(1).sum(1).mean()
                loss = loss + config.reconstruction_weight * squared
        output = CapsuleClassifierOutput(
            loss=loss,
            logits=found.lengths,
            capsules=found.capsules,
            reconstruction=reconstruction,
            routing_weights=found.routing_weights,
            routing_objective=found.routing_objective,
        )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def predict_labels(
        self, pixel_values: Tensor | None = None, top_k: int = 2, threshold: float | None = 0.5, **inputs: Tensor
    ) -> list[list[int]]:
        """The classes that are there, the longest capsule first.

        Args:
            pixel_values: images; a text's ``input_ids`` and so on go by keyword.
            top_k: most classes an example.
            threshold: length that a capsule must exceed; None always gives ``top_k`` classes.

        Returns:
            Class ids, one list an example; empty where no capsule is long enough.
        """
        if not 1 <= top_k <= self.config.num_labels:
            raise ValueError(f"top_k={top_k} must lie between 1 and the {self.config.num_labels} classes")
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} must lie in [0, 1), as lengths of capsules do")
        lengths, classes = self.capsule(pixel_values, **inputs, return_dict=True).lengths.topk(top_k)
        found = lengths > (-1 if threshold is None else threshold)
        return [row[keep].tolist() for row, keep in zip(classes, found, strict=True)]


class CapsuleForImageClassification(CapsuleClassifier):
    r"""Image classifier: one capsule a class, whose length says whether an object of the class is there.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import CapsuleConfig, CapsuleForImageClassification
    >>> model = CapsuleForImageClassification(CapsuleConfig.from_preset("article")).eval()
    >>> images, labels = torch.rand(2, 1, 28, 28), torch.tensor([3, 7])
    >>> model(images, labels=labels).logits.shape
    torch.Size([2, 10])
    >>> [len(classes) for classes in model.predict_labels(torch.cat([images, images], 2), top_k=2, threshold=None)]
    [2, 2]

    ```
    """

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: CapsuleConfig):
        super().__init__(config)
        if self.main_input_name != "pixel_values":
            raise ValueError(
                f"encoder_config of {config.encoder_config.model_type!r} reads {self.main_input_name}, not images; use "
                "CapsuleForSequenceClassification"
            )

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_routing_weights: bool = False,
        output_routing_objective: bool = False,
        return_dict: bool | None = None,
    ) -> CapsuleClassifierOutput | tuple:
        """Lengths of the capsules, and with labels the margin loss.

        Args:
            pixel_values: ``(batch, channels, height, width)`` in [0, 1], as the image processor gives it.
            labels: class ids ``(batch,)``, or ``(batch, num_labels)`` of zeros and ones for several objects in an image.
            output_routing_weights, output_routing_objective: whether the output has those fields.
            return_dict: a [`CapsuleClassifierOutput`], or a tuple of its fields that are not None.

        Raises:
            ValueError: images or labels that do not fit the configuration.
        """
        inputs = {
            "pixel_values": pixel_values,
            "output_routing_weights": output_routing_weights,
            "output_routing_objective": output_routing_objective,
        }
        return self.classify(inputs, labels, return_dict)

    def reconstruct(self, capsules: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``(batch, channels, height, width)`` in [0, 1] from capsules ``(batch, num_labels, capsule_dim)``.

        Args:
            capsules: as `forward` gives them, or moved: each of a capsule's numbers is a way in which a class varies.
            labels: classes to draw, as in `forward`; the longest capsule by default.

        Raises:
            ValueError: the model has no decoder, or the shapes do not fit.
        """
        if self.decoder is None:
            raise ValueError("this model has no decoder: set use_decoder=True, and image_size, before training")
        expected = (self.config.num_labels, self.config.capsule_dim)
        if capsules.ndim != 3 or tuple(capsules.shape[1:]) != expected:
            raise ValueError(f"capsules must be (batch, {expected[0]}, {expected[1]}), got {tuple(capsules.shape)}")
        labels = capsule_lengths(capsules).argmax(1) if labels is None else labels
        return self.decoder(capsules, multi_hot(labels, self.config.num_labels, len(capsules)).to(capsules.device))


class CapsuleForSequenceClassification(CapsuleClassifier):
    r"""Text classifier: the tokens of an encoder, routed to one capsule a class.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import CapsuleConfig, CapsuleForSequenceClassification
    >>> bert = {"model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = CapsuleForSequenceClassification(CapsuleConfig(encoder_config=bert, num_labels=2)).eval()
    >>> model(torch.tensor([[2, 7, 9, 3]]), output_routing_weights=True).routing_weights.shape
    torch.Size([1, 2, 4])

    ```
    """

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: CapsuleConfig):
        if config.encoder_config is None:
            raise ValueError('a text needs an encoder: give encoder_config, for example {"model_type": "bert", ...}')
        if config.use_decoder:
            raise ValueError("use_decoder=True draws images, which a text has none of")
        super().__init__(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_routing_weights: bool = False,
        output_routing_objective: bool = False,
        return_dict: bool | None = None,
    ) -> CapsuleClassifierOutput | tuple:
        """Lengths of the capsules, and with labels the margin loss; arguments as in [`CapsuleModel`] and for images."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
            "output_routing_weights": output_routing_weights,
            "output_routing_objective": output_routing_objective,
        }
        return self.classify(inputs, labels, return_dict)


__all__ = [
    "CapsuleClassifierOutput",
    "CapsuleForImageClassification",
    "CapsuleForSequenceClassification",
    "CapsuleLayer",
    "CapsuleLayerOutput",
    "CapsuleModel",
    "CapsuleModelOutput",
    "margin_loss",
]
