"""Capsules: routing against plain loops and against what the articles prove of it; models, losses, Auto classes, pipelines.

The loops of `naive_routing` follow the formulas and share no code with the package. Random images converge slowly, real
feature maps (never negative) quickly; `feature_images` are like the latter.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification, BertConfig, pipeline
from transformers import BertModel as Bert

from hfblog import (
    CapsuleConfig,
    CapsuleForImageClassification,
    CapsuleForSequenceClassification,
    CapsuleLayer,
    CapsuleModel,
    DensePredictions,
    EuclideanPredictions,
    FlowImageProcessor,
    margin_loss,
    route,
    routing_objective,
    squash,
    train_tokenizer,
)
from hfblog.models.capsule import routing
from hfblog.models.capsule.configuration_capsule import ROUTING_TYPES, SQUASH_TYPES, WEIGHT_LAYOUTS
from hfblog.models.capsule.modeling_capsule import CapsuleConvolutions, capsule_lengths

# examples, inputs, numbers of an input, capsules, numbers of a capsule
B, N, FEATURES, K, D = 2, 5, 4, 3, 6
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0]])

# Ways through the code: full weights have compiled loops, and matrix products over one block of inputs or over several.
PATHS = [
    "shared",
    "factored",
    "full",
    "full-blocks",
    pytest.param("full-fused", marks=pytest.mark.skipif(routing.compiled_loops() is None, reason="needs numba")),
]

IMAGES = {
    "conv_channels": [6, 8],
    "conv_kernel_sizes": 3,
    "pool_after": 1,
    "num_labels": 3,
    "capsule_dim": 4,
    "initializer_range": 0.3,
}
DECODER = IMAGES | {"image_size": 12, "use_decoder": True, "decoder_hidden_sizes": [10]}
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
TEXTS = {"encoder_config": BERT, "num_labels": 3, "capsule_dim": 4}


@pytest.fixture
def layout(request, monkeypatch) -> str:
    """The layout of one of `PATHS`, with the package set to take that path."""
    name, _, path = request.param.partition("-")
    if path != "fused":
        monkeypatch.setattr(routing, "compiled_loops", lambda: None)
    if path == "blocks":  # two inputs each, and one in the last
        monkeypatch.setattr(routing, "BLOCK_NUMBERS", 2 * B * FEATURES * K)
    return name


def make_layer(layout: str, **settings) -> CapsuleLayer:
    """With weights large enough for couplings far from uniform ones."""
    inputs = {} if layout == "shared" else {"num_input_capsules": N}
    factor = {"factor_dim": 3} if layout == "factored" else {}
    settings = {"initializer_range": 0.5} | settings
    return CapsuleLayer(FEATURES, K, D, weight_layout=layout, **inputs, **factor, **settings).double()


def make_inputs(*shape: int, **settings) -> Tensor:
    return torch.randn(*(shape or (B, N, FEATURES)), dtype=torch.float64, **settings)


def feature_images(scale: float = 1.0, batch: int = 8, n: int = 64, f: int = 32, k: int = 10, d: int = 16) -> Tensor:
    weight = scale * f**-0.5 * make_inputs(f, k, d)
    return torch.einsum("bif,fkd->bikd", make_inputs(batch, n, f).relu(), weight)


# --- the loops ---


def naive_squash(vector: Tensor, squash_type: str, constant: float) -> Tensor:
    squared = vector @ vector + 1e-7
    norm = squared.sqrt()
    length = {
        "squash": squared / (constant + squared),
        "tanh": norm.tanh(),
        "exp": 1 - (-norm).exp(),
        "ratio": norm / (1 + norm),
        "none": norm,
    }
    return length[squash_type] * vector / norm


def naive_routing(
    images: Tensor,
    iterations: int,
    routing_type: str = "kmeans",
    temperature: float = 1.0,
    mask: Tensor | None = None,
    squash_type: str = "squash",
    constant: float = 0.5,
    detach: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Capsules ``(B, k, D)``, coupling ``(B, k, n)`` and objectives ``(B, iterations)`` of images ``(B, n, k, D)``."""
    batch, n, k, _ = images.shape
    capsules, couplings, objectives = [], [], []
    for b in range(batch):
        present = [i for i in range(n) if mask is None or mask[b, i]]
        logits = {(i, j): images.new_zeros(()) for i in range(n) for j in range(k)}
        steps = []
        for step in range(iterations):
            coupling = {}
            for i in range(n):
                powers = [(temperature * logits[i, j]).exp() for j in range(k)]
                for j in range(k):
                    share = powers[j] / sum(powers) if i in present else images.new_zeros(())
                    coupling[i, j] = share.detach() if detach else share
            sums = [sum(coupling[i, j] * images[b, i, j] for i in present) for j in range(k)]
            units = [s / (s @ s).sqrt() for s in sums]
            free = [sum((temperature * (images[b, i, j] @ units[j])).exp() for j in range(k)).log() for i in present]
            steps.append(-sum(free) / temperature)
            if step + 1 < iterations:
                for i, j in logits:
                    center = units[j] if routing_type == "kmeans" else naive_squash(sums[j], squash_type, constant)
                    agreement = images[b, i, j] @ center
                    logits[i, j] = logits[i, j] + agreement if routing_type == "hinton" else agreement
        capsules.append(torch.stack([naive_squash(s, squash_type, constant) for s in sums]))
        couplings.append(torch.stack([torch.stack([coupling[i, j] for i in range(n)]) for j in range(k)]))
        objectives.append(torch.stack(steps))
    return torch.stack(capsules), torch.stack(couplings), torch.stack(objectives)


def naive_images(layer: CapsuleLayer, inputs: Tensor) -> Tensor:
    """``û_ij``, one matrix product each."""

    def image(b: int, i: int, j: int) -> Tensor:
        if layer.weight_layout == "full":
            return inputs[b, i] @ layer.weight[i, :, j]
        vector = inputs[b, i] @ layer.factors[i] if layer.weight_layout == "factored" else inputs[b, i]
        return vector @ layer.weight[:, j]

    batch, n = inputs.shape[:2]
    capsules = range(layer.weight.shape[-2])
    return torch.stack(
        [torch.stack([torch.stack([image(b, i, j) for j in capsules]) for i in range(n)]) for b in range(batch)]
    )


def gradients(layer: CapsuleLayer, inputs: Tensor, capsules: Tensor, probe: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((capsules * probe).sum(), [inputs, *layer.parameters()])


close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("routing_type", ROUTING_TYPES)
@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_layer_is_the_loops(layout, routing_type, iterations, masked):
    layer = make_layer(layout, routing_type=routing_type, routing_iterations=iterations, routing_temperature=1.3)
    inputs, mask = make_inputs(requires_grad=True), MASK if masked else None
    found = layer(inputs, mask, output_routing_weights=True, output_routing_objective=True)
    capsules, coupling, objective = naive_routing(naive_images(layer, inputs), iterations, routing_type, 1.3, mask)
    close(found.capsules, capsules)
    close(found.routing_weights, coupling)
    close(found.routing_objective, objective)
    probe = make_inputs(B, K, D)
    for value, expected in zip(
        gradients(layer, inputs, found.capsules, probe), gradients(layer, inputs, capsules, probe), strict=True
    ):
        assert expected.abs().max() > 1e-3
        close(value, expected)


@pytest.mark.parametrize("routing_type", ROUTING_TYPES)
@pytest.mark.parametrize("squash_type", SQUASH_TYPES)
def test_squashes_in_the_layer_are_those_of_the_loops(squash_type, routing_type):
    layer = make_layer("shared", routing_type=routing_type, squash_type=squash_type, squash_constant=0.8)
    inputs = make_inputs()
    expected, *_ = naive_routing(naive_images(layer, inputs), 3, routing_type, 1.0, None, squash_type, 0.8)
    close(layer(inputs).capsules, expected)


@pytest.mark.parametrize("routing_type", ROUTING_TYPES)
@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_detached_routing_has_the_gradient_of_a_fixed_coupling(layout, routing_type):
    layer = make_layer(layout, routing_type=routing_type, detach_routing=True)
    inputs, probe = make_inputs(requires_grad=True), make_inputs(B, K, D)
    capsules = layer(inputs, MASK).capsules
    found = gradients(layer, inputs, capsules, probe)
    images = naive_images(layer, inputs)
    fixed, *_ = naive_routing(images, 3, routing_type, 1.0, MASK, detach=True)
    close(capsules, fixed)
    for value, expected in zip(found, gradients(layer, inputs, fixed, probe), strict=True):
        close(value, expected)
    whole, *_ = naive_routing(naive_images(layer, inputs), 3, routing_type, 1.0, MASK)
    for value, other in zip(found, gradients(layer, inputs, whole, probe), strict=True):
        assert (value - other).abs().max() > 1e-3


@pytest.mark.parametrize("routing_type", ROUTING_TYPES)
def test_given_images_are_routed_like_those_of_a_layer(routing_type):
    images = make_inputs(B, N, K, D)
    expected, coupling, objective = naive_routing(images, 4, routing_type, 1.3, MASK)
    predictions = DensePredictions(images, MASK)
    trace = route(predictions, 4, routing_type, 1.3)
    close(squash(trace.sums), expected)
    close(predictions.coupling(trace.query).mT, coupling)
    close(torch.stack([routing_objective(predictions, step, 1.3) for step in trace.directions], 1), objective)


@pytest.mark.skipif(routing.compiled_loops() is None, reason="needs numba")
def test_full_weights_take_the_compiled_loops_where_they_can():
    assert make_layer("full").predictions(make_inputs()).fused


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_type_of_the_mask_does_not_matter(layout, dtype):
    layer, inputs = make_layer(layout), make_inputs()
    assert torch.equal(layer(inputs, MASK.to(dtype)).capsules, layer(inputs, MASK).capsules)


# --- C1 to C5: what the articles say of the iteration ---


@pytest.mark.parametrize("routing_type", ROUTING_TYPES)
@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_shares_of_an_input_sum_to_one(layout, routing_type):
    layer = make_layer(layout, routing_type=routing_type)
    inputs = make_inputs()
    everywhere = layer(inputs, output_routing_weights=True).routing_weights
    assert everywhere.shape == (B, K, N) and everywhere.std(1).min() > 1e-3
    close(everywhere.sum(1), torch.ones(B, N, dtype=torch.float64))
    masked = layer(inputs, MASK, output_routing_weights=True).routing_weights
    close(masked.sum(1), MASK.double())
    assert (masked[1, :, [1, 4]] == 0).all()


@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
def test_one_iteration_is_uniform(layout):
    layer = make_layer(layout, routing_iterations=1)
    assert (layer(make_inputs(), output_routing_weights=True).routing_weights == 1 / K).all()
    masked = layer(make_inputs(), MASK, output_routing_weights=True).routing_weights
    assert torch.equal(masked, MASK[:, None].double().expand(B, K, N) / K)


def largest_rise(images: Tensor, routing_type: str) -> float:
    predictions = DensePredictions(images)
    trace = route(predictions, 50, routing_type)
    objective = torch.stack([routing_objective(predictions, directions) for directions in trace.directions])
    assert objective.shape == (50, len(images)) and (objective[-1] < objective[0] - 0.1).any()
    return objective.diff(dim=0).max().item()


@pytest.mark.parametrize("scale", [0.3, 1, 4])
def test_kmeans_never_raises_its_objective(scale):
    assert largest_rise(scale * make_inputs(8, 64, 10, 16), "kmeans") <= 1e-10


def test_other_routings_do_raise_it():
    assert largest_rise(make_inputs(8, 64, 10, 16), "hinton") > 1e-2
    images = 4 * make_inputs(8, 16, 10, 16)  # few and long: squashed lengths differ from 1, and matter
    assert largest_rise(images, "replace") > 1e-4
    assert largest_rise(images, "kmeans") <= 1e-10


@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_layers_report_an_objective_that_falls(layout):
    layer = make_layer(layout, routing_iterations=50, routing_temperature=2.5, initializer_range=0.4)
    for mask in (None, MASK):
        objective = layer(make_inputs(), mask, output_routing_objective=True).routing_objective
        assert objective.shape == (B, 50) and objective.diff(dim=1).max() <= 1e-10
        assert (objective[:, -1] < objective[:, 0] - 1e-3).all()


def mean_entropy(images: Tensor, iterations: int, routing_type: str) -> float:
    predictions = DensePredictions(images)
    coupling = predictions.coupling(route(predictions, iterations, routing_type).query)
    return torch.special.entr(coupling).sum(2).mean().item()


def test_only_kmeans_stays_soft():
    images = feature_images()
    assert mean_entropy(images, 20, "kmeans") == pytest.approx(mean_entropy(images, 100, "kmeans"), abs=1e-3)
    assert mean_entropy(images, 100, "kmeans") > 1
    assert mean_entropy(images, 20, "hinton") > 0.05 > mean_entropy(images, 100, "hinton")


def test_kmeans_comes_to_rest():
    directions = route(DensePredictions(feature_images()), 201).directions
    change = [(directions[step + 1] - directions[step]).norm(dim=2).max().item() for step in (0, 199)]
    assert change[0] > 0.1 and change[1] < 1e-6


def test_centres_at_rest_are_stationary():
    predictions = DensePredictions(feature_images())

    def slope(centers: Tensor) -> Tensor:
        centers = centers.detach().requires_grad_()
        objective = routing_objective(predictions, centers / centers.norm(dim=2, keepdim=True))
        return torch.autograd.grad(objective.sum(), centers)[0]

    assert slope(route(predictions, 200).sums).abs().max() < 1e-6
    random = make_inputs(8, 10, 16)
    assert slope(random).abs().max() > 1e-2
    # lengths of centres do not count
    assert (slope(random) * random).sum(2).abs().max() < 1e-10


# --- C6 and C7: which inputs, in which order ---


def test_shared_weights_know_no_order():
    layer, inputs = make_layer("shared"), make_inputs()
    order = torch.randperm(N)
    found = layer(inputs[:, order], MASK[:, order], output_routing_weights=True)
    expected = layer(inputs, MASK, output_routing_weights=True)
    torch.testing.assert_close(found.capsules, expected.capsules, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.routing_weights, expected.routing_weights[..., order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["factored", "full"])
def test_other_weights_know_the_order(layout):
    layer, inputs = make_layer(layout), make_inputs()
    assert (layer(inputs.flip(1)).capsules - layer(inputs).capsules).abs().max() > 1e-2


@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_examples_do_not_meet(layout):
    layer, inputs = make_layer(layout), make_inputs()
    alone = torch.cat([layer(inputs[b : b + 1], MASK[b : b + 1]).capsules for b in range(B)])
    torch.testing.assert_close(layer(inputs, MASK).capsules, alone, rtol=0, atol=1e-12)


def test_masked_inputs_are_as_good_as_removed():
    layer, inputs = make_layer("shared"), make_inputs()
    inputs[1, MASK[1] == 0] *= 1000
    found = layer(inputs, MASK).capsules
    torch.testing.assert_close(found[1:], layer(inputs[1:, MASK[1] == 1]).capsules, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:1], layer(inputs[:1]).capsules, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_masked_inputs_at_the_end_need_not_be_there(layout):
    layer, inputs = make_layer(layout), make_inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    short = layer(inputs[:, :3], mask[:, :3]).capsules
    torch.testing.assert_close(layer(inputs, mask).capsules, short, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", PATHS[2:], indirect=True)
def test_full_weights_that_repeat_are_shared_ones(layout):
    shared, full, inputs = make_layer("shared"), make_layer(layout), make_inputs()
    with torch.no_grad():
        full.weight.copy_(shared.weight.expand_as(full.weight))
    torch.testing.assert_close(full(inputs, MASK).capsules, shared(inputs, MASK).capsules, rtol=0, atol=1e-12)


# --- C8 to C11 ---


@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_weights_absorb_the_temperature(layout):
    settings = {"squash_type": "none", "routing_iterations": 4}
    hot, large = make_layer(layout, routing_temperature=3.0, **settings), make_layer(layout, **settings)
    large.load_state_dict(hot.state_dict())
    with torch.no_grad():
        large.weight *= 3
    inputs = make_inputs()
    first, second = (layer(inputs, output_routing_weights=True) for layer in (hot, large))
    close(second.routing_weights, first.routing_weights)
    close(second.capsules, 3 * first.capsules)
    hot.temperature = 1.0
    assert (hot(inputs, output_routing_weights=True).routing_weights - first.routing_weights).abs().max() > 1e-2


def test_cold_euclidean_routing_is_lloyds_algorithm():
    generator = np.random.default_rng(0)
    blobs = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
    points = (blobs[:, None] + generator.normal(size=(4, 20, 2))).reshape(-1, 2)
    start = np.array([[2.0, 3], [6, 1], [1, 6], [5, 6]])
    images = torch.from_numpy(points)[None, :, None].expand(1, -1, 4, -1)
    predictions = EuclideanPredictions(images, temperature=1e4)
    for steps in (1, 20):
        lloyd = KMeans(4, n_init=1, max_iter=steps, init=start, algorithm="lloyd", tol=0).fit(points)
        sums = route(predictions, steps, "means", centers=torch.from_numpy(start)[None]).sums
        torch.testing.assert_close(sums[0], torch.from_numpy(lloyd.cluster_centers_), rtol=0, atol=1e-10)
    assert (sums[0] - torch.from_numpy(blobs)).abs().max() < 1


@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_gradients_are_those_of_finite_differences(layout):
    layer = make_layer(layout)
    names = [name for name, _ in layer.named_parameters()]

    def run(inputs: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (inputs, MASK)).capsules

    assert torch.autograd.gradcheck(run, (make_inputs(requires_grad=True), *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("routing_type", ROUTING_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_gradients_at_empty_inputs_are_finite(layout, dtype, routing_type):
    layer = make_layer(layout, routing_type=routing_type).to(dtype)
    inputs = torch.zeros(B, N, FEATURES, dtype=dtype, requires_grad=True)
    lengths = capsule_lengths(layer(inputs).capsules)
    margin_loss(lengths, torch.eye(K)[:B]).backward()
    for tensor in (inputs, *layer.parameters()):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("squash_type", [name for name in SQUASH_TYPES if name != "none"])
def test_squash_keeps_directions_and_order_below_one(squash_type):
    norms = torch.linspace(0.01, 15, 300, dtype=torch.float64)
    direction = F.normalize(make_inputs(6), dim=0)
    found = squash(norms[:, None] * direction, squash_type)
    lengths = found.norm(dim=1)
    assert (lengths < 1).all() and (lengths.diff() > 0).all()
    close(found / lengths[:, None], direction.expand_as(found))
    assert (squash(torch.tensor([3e4, 4e4]), squash_type).norm() - 1).abs() < 1e-4


@pytest.mark.parametrize(("constant", "norm", "ratio"), [(0.5, 0.5**0.5, 0.5**0.5), (1.0, 1.0, 0.5)])
def test_where_squash_lengthens_most(constant, norm, ratio):
    norms = torch.linspace(0.01, 3, 3000, dtype=torch.float64)
    ratios = squash(norms[:, None], constant=constant)[:, 0] / norms
    assert ratios.max().item() == pytest.approx(ratio, abs=1e-5)
    assert norms[ratios.argmax()].item() == pytest.approx(norm, abs=2e-3)


@pytest.mark.parametrize("squash_type", SQUASH_TYPES)
def test_squash_is_smooth_at_zero(squash_type):
    zero = torch.zeros(2, 3, requires_grad=True)
    squash(zero, squash_type).sum().backward()
    assert torch.isfinite(zero.grad).all()
    assert (squash(zero, squash_type) == 0).all()


# --- models of images ---


def article(**settings) -> CapsuleForImageClassification:
    return CapsuleForImageClassification(CapsuleConfig.from_preset("article", **settings)).eval()


@torch.no_grad()
def test_saved_models_come_back_exactly(tmp_path):
    model = article()
    model.save_pretrained(tmp_path)
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path)
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(classifier) is CapsuleForImageClassification and type(bare) is CapsuleModel
    for size in [(28, 28), (56, 28)]:
        images = torch.rand(2, 1, *size)
        expected = model(images)
        assert torch.equal(classifier(images).logits, expected.logits)
        assert torch.equal(bare(images).lengths, expected.logits) and torch.equal(bare(images).capsules, expected.capsules)
        assert torch.equal(bare(images, return_dict=False)[-1], expected.logits)


def count(config: CapsuleConfig) -> int:
    with torch.device("meta"):
        return CapsuleForImageClassification(config).num_parameters()


def test_presets_have_the_sizes_of_their_sources():
    assert count(CapsuleConfig.from_preset("article")) == 279_488
    assert count(CapsuleConfig.from_preset("article", pooling="mean")) == pytest.approx(279_488, rel=0.01)
    assert count(CapsuleConfig.from_preset("capsnet")) == 8_215_568
    assert count(CapsuleConfig.from_preset("capsnet", use_decoder=False)) == 6_804_224
    names = ("routing_type", "routing_iterations", "squash_constant", "margin_lambda")
    settings = [tuple(getattr(CapsuleConfig.from_preset(preset), name) for name in names) for preset in ("article", "capsnet")]
    assert settings == [("kmeans", 3, 0.5, 0.25), ("hinton", 3, 1, 0.5)]


def test_capsnet_routes_1152_capsules_of_8_numbers():
    config = CapsuleConfig.from_preset("capsnet")
    assert (config.num_input_capsules, config.input_dim) == (1152, 8)
    with torch.device("meta"):
        assert CapsuleModel(config).input_capsules(pixel_values=torch.empty(1, 1, 28, 28)).shape == (1, 1152, 8)


@torch.no_grad()
def test_mean_pooling_is_a_plain_network_over_the_mean():
    model = article(pooling="mean")
    layer = model.capsule.layer
    vectors = model.capsule.input_capsules(pixel_values=torch.rand(2, 1, 20, 20))
    expected = torch.sigmoid(layer.output(layer.hidden(vectors.sum(1) / vectors.shape[1]).relu()))
    torch.testing.assert_close(layer(vectors).capsules[..., 0], expected)
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    masked = layer(vectors[:, :9], attention_mask=mask).capsules[1]
    torch.testing.assert_close(masked, layer(vectors[1:, :4]).capsules[0])


def test_every_setting_of_a_configuration_reaches_its_layer():
    config = CapsuleConfig(
        **(IMAGES | {"image_size": 12, "weight_layout": "factored", "factor_dim": 5, "initializer_range": 0.7}),
        **{"routing_type": "replace", "routing_iterations": 2, "routing_temperature": 1.7, "detach_routing": True},
        **{"squash_type": "squash", "squash_constant": 0.8},
    )
    model = CapsuleModel(config).double()
    layer = model.layer
    assert layer.factors.shape == (9, 8, 5) and layer.weight.std().item() == pytest.approx(0.7, rel=0.3)
    inputs = model.input_capsules(pixel_values=torch.rand(2, 1, 12, 12)).detach()
    found = layer(inputs).capsules
    expected, *_ = naive_routing(naive_images(layer, inputs), 2, "replace", 1.7, None, "squash", 0.8, detach=True)
    close(found, expected)
    slopes = [torch.autograd.grad(capsules.square().sum(), layer.weight)[0] for capsules in (found, expected)]
    close(*slopes)
    tanh = CapsuleModel(CapsuleConfig(**IMAGES, squash_type="tanh")).double()
    sums = naive_routing(naive_images(tanh.layer, inputs), 3, squash_type="tanh")[0]
    close(tanh.layer(inputs).capsules, sums)


@pytest.mark.parametrize("pool_after", [None, 1, 2])
@torch.no_grad()
def test_primary_capsules_are_runs_of_channels_at_one_place(pool_after):
    config = CapsuleConfig(
        num_channels=2,
        conv_channels=[6, 12],
        conv_kernel_sizes=[3, 2],
        conv_strides=[1, 2],
        pool_after=pool_after,
        primary_capsule_dim=4,
        squash_constant=0.8,
    )
    convolutions, images = CapsuleConvolutions(config), torch.rand(2, 2, 13, 11)
    first, last = convolutions.layers
    maps = F.conv2d(images, first.weight, first.bias).relu()
    maps = F.avg_pool2d(maps, 2) if pool_after == 1 else maps
    maps = F.conv2d(maps, last.weight, last.bias, stride=2)
    assert (maps < 0).any()
    maps = F.avg_pool2d(maps, 2) if pool_after == 2 else maps
    expected = []
    for image in maps:
        for start in (0, 4, 8):
            for row in range(maps.shape[2]):
                for column in range(maps.shape[3]):
                    expected.append(naive_squash(image[start : start + 4, row, column], "squash", 0.8))
    torch.testing.assert_close(convolutions(images), torch.stack(expected).view(2, -1, 4))


@pytest.mark.parametrize(
    "settings",
    [
        {"pool_after": None},
        {"pool_after": 1, "conv_kernel_sizes": [5, 2]},
        {"pool_after": 2, "conv_strides": [2, 3]},
        {"pool_after": 1, "conv_padding": True, "conv_kernel_sizes": [5, 1]},
        {"pool_after": 2, "conv_padding": True, "conv_strides": 2},
    ],
)
@pytest.mark.parametrize("size", [(17, 24), (26, 15)])
def test_predicted_map_size_is_the_real_one(settings, size):
    config = CapsuleConfig(**(IMAGES | settings))
    places = CapsuleConvolutions(config)(torch.rand(1, 1, *size)).shape[1]
    assert places == math.prod(config.conv_output_size(*size))
    # the other way round, so that height and width cannot be confused
    fixed = CapsuleConfig(**(IMAGES | settings), weight_layout="full", image_size=size)
    assert fixed.num_input_capsules == places
    assert config.conv_output_size(*size) == config.conv_output_size(*size[::-1])[::-1]
    assert CapsuleModel(fixed)(torch.rand(1, 1, *size)).lengths.shape == (1, 3)


# --- losses ---


def test_margin_loss_is_the_double_loop():
    lengths, targets = torch.rand(4, 5, dtype=torch.float64), torch.randint(2, (4, 5))
    total = 0.0
    for b in range(4):
        for c in range(5):
            length = lengths[b, c].item()
            total += max(0, 0.8 - length) ** 2 if targets[b, c] else 0.3 * max(0, length - 0.2) ** 2
    assert margin_loss(lengths, targets, 0.8, 0.2, 0.3).item() == pytest.approx(total / 4)


@pytest.mark.parametrize(
    ("lengths", "targets", "expected"),
    [
        ([0.9, 0.1], [1, 0], 0),
        ([1.0, 0.0], [1, 0], 0),
        ([0.4, 0.1], [1, 0], 0.25),
        ([0.9, 0.6], [1, 0], 0.125),
        ([0.2, 0.3], [0, 0], 0.5 * (0.01 + 0.04)),
        ([0.8, 0.7], [1, 1], 0.01 + 0.04),
    ],
)
def test_margin_loss_by_hand(lengths, targets, expected):
    assert margin_loss(torch.tensor([lengths]), torch.tensor([targets])).item() == pytest.approx(expected, abs=1e-7)


def test_losses_of_the_classifier():
    settings = {"margin_positive": 0.8, "margin_negative": 0.2, "margin_lambda": 0.7}
    model = CapsuleForImageClassification(CapsuleConfig(**IMAGES, **settings)).eval()
    images, labels = torch.rand(2, 1, 12, 12), torch.tensor([2, 0])
    output = model(images, labels=labels)
    table = torch.tensor([[0, 0, 1], [1, 0, 0]])
    assert output.loss.item() == pytest.approx(margin_loss(output.logits, table, 0.8, 0.2, 0.7).item())
    for same in (table, table.bool(), table.float()):
        assert torch.equal(model(images, labels=same).loss, output.loss)
    several = torch.tensor([[1, 0, 1], [0, 0, 0]])
    assert model(images, labels=several).loss.item() == pytest.approx(
        margin_loss(output.logits, several, 0.8, 0.2, 0.7).item()
    )
    assert torch.equal(model(images, labels=labels, return_dict=False)[0], output.loss)
    assert model(images).loss is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_of_any_type_are_class_ids(dtype):
    model = CapsuleForImageClassification(CapsuleConfig(**IMAGES)).eval()
    images, labels = torch.rand(2, 1, 12, 12), torch.tensor([2, 0])
    assert torch.equal(model(images, labels=labels.to(dtype)).loss, model(images, labels=labels).loss)


@torch.no_grad()
def test_reconstructions():
    model = CapsuleForImageClassification(CapsuleConfig(**DECODER, reconstruction_weight=0.3)).eval()
    images, labels = torch.rand(4, 1, 12, 12), torch.tensor([2, 0, 1, 2])
    output = model(images, labels=labels)
    drawn = output.reconstruction
    assert drawn.shape == images.shape and drawn.min() >= 0 and drawn.max() <= 1
    squared = sum(((drawn[b] - images[b]) ** 2).sum().item() for b in range(4)) / 4
    margin = margin_loss(output.logits, F.one_hot(labels, 3), 0.9, 0.1, 0.25).item()
    assert output.loss.item() == pytest.approx(margin + 0.3 * squared)
    assert torch.equal(model.reconstruct(output.capsules, labels), drawn)
    assert torch.equal(model.reconstruct(output.capsules, F.one_hot(labels, 3)), drawn)
    assert model(images).reconstruction is None
    # the longest by default, and nothing of the others
    longest = output.capsules.norm(dim=2).argmax(1)
    assert torch.equal(model.reconstruct(output.capsules), model.reconstruct(output.capsules, longest))
    moved = torch.where(F.one_hot(labels, 3)[..., None] == 1, output.capsules, torch.randn(4, 3, 4))
    assert torch.equal(model.reconstruct(moved, labels), drawn)
    assert not torch.equal(model.reconstruct(output.capsules + 0.1, labels), drawn)
    both = model.reconstruct(output.capsules, torch.tensor([[1, 0, 1]] * 4))
    assert not torch.equal(both, drawn) and both.shape == images.shape


# --- predict_labels ---


@torch.no_grad()
def test_predicted_labels_are_the_long_capsules():
    model = article()
    model.capsule.layer.weight *= 3  # lengths on both sides of the threshold
    images = torch.rand(6, 1, 20, 20)
    lengths = model(images).logits
    threshold = lengths.median().item()
    order = lengths.argsort(1, descending=True)
    for top_k in (1, 2, 10):
        expected = [[c.item() for c in row[:top_k] if lengths[b, c] > threshold] for b, row in enumerate(order)]
        assert model.predict_labels(images, top_k=top_k, threshold=threshold) == expected
        assert model.predict_labels(images, top_k, threshold=None) == order[:, :top_k].tolist()
    assert {len(row) for row in expected} - {0, 10}  # some but not all
    assert model.predict_labels(images, threshold=math.nextafter(lengths.max().item(), 1)) == [[]] * 6
    assert all(len(row) <= 2 for row in model.predict_labels(images, threshold=0.0))
    expected = [[c.item() for c in row[:2] if lengths[b, c] > 0.5] for b, row in enumerate(order)]
    assert model.predict_labels(images) == expected


# --- texts ---


def text_model(**settings) -> CapsuleForSequenceClassification:
    return CapsuleForSequenceClassification(CapsuleConfig(**(TEXTS | settings))).eval()


def texts(*lengths: int, size: int) -> dict[str, Tensor]:
    mask = (torch.arange(size) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(5, 50, mask.shape) * mask, "attention_mask": mask}


@pytest.mark.parametrize("settings", [{}, {"weight_layout": "full", "num_input_capsules": 16}, {"pooling": "mean"}], ids=str)
@torch.no_grad()
def test_padding_does_not_change_a_text(settings):
    model, batch = text_model(**settings), texts(9, 4, size=9)
    found = model(**batch, output_routing_weights=True)
    for row, length in enumerate((9, 4)):
        short = {name: values[row : row + 1, :length] for name, values in batch.items()}
        torch.testing.assert_close(model(**short).logits[0], found.logits[row], rtol=0, atol=1e-6)
    assert model(**texts(16, 11, size=16)).logits.shape == (2, 3)
    if "pooling" not in settings:
        assert (found.routing_weights[1, :, 4:] == 0).all()
        torch.testing.assert_close(found.routing_weights.sum(1), batch["attention_mask"].float())
    assert model.predict_labels(**batch, threshold=None, top_k=3) == found.logits.argsort(1, descending=True).tolist()


@torch.no_grad()
def test_a_pretrained_encoder_is_taken_over_exactly(tmp_path):
    fields = {name: value for name, value in BERT.items() if name != "model_type"}
    bert = Bert(BertConfig(**fields)).eval()
    bert.save_pretrained(tmp_path / "bert")
    model = CapsuleForSequenceClassification.from_encoder_pretrained(
        str(tmp_path / "bert"), num_labels=3, capsule_dim=4
    ).eval()
    batch = texts(9, 4, size=9)
    states = bert(**batch).last_hidden_state
    assert torch.equal(model.capsule.input_capsules(**batch), states)
    bare = CapsuleModel.from_encoder_pretrained(str(tmp_path / "bert"), num_labels=3).eval()
    assert torch.equal(bare.input_capsules(**batch), states)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    embedded = model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]), attention_mask=batch["attention_mask"])
    torch.testing.assert_close(embedded.logits, model(**batch).logits)
    # the layer alone, over the states of an encoder
    layer = CapsuleLayer(16, 3, 4).eval()
    layer.load_state_dict(model.capsule.layer.state_dict())
    assert torch.equal(layer(states, attention_mask=batch["attention_mask"]).capsules, model(**batch).capsules)


def test_texts_train_their_encoder():
    model = text_model().train()
    model(**texts(9, 4, size=9), labels=torch.tensor([0, 2])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_an_image_encoder_takes_the_place_of_the_convolutions():
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit |= {"image_size": 8, "patch_size": 4, "num_channels": 1}
    config = CapsuleConfig(encoder_config=vit, image_size=8, num_labels=3, use_decoder=True, decoder_hidden_sizes=[10])
    model = CapsuleForImageClassification(config)
    output = model(torch.rand(2, 1, 8, 8), labels=torch.tensor([0, 2]), output_routing_weights=True)
    assert output.routing_weights.shape == (2, 3, 5) and output.reconstruction.shape == (2, 1, 8, 8)


# --- half precision and compilation ---


@pytest.mark.parametrize("layout", PATHS, indirect=True)
def test_half_precision_is_close(layout):
    # lengths in the middle, where they are most sensitive
    layer, inputs = make_layer(layout, initializer_range=0.3).float(), make_inputs().float().requires_grad_()
    expected = capsule_lengths(layer(inputs, MASK).capsules)
    assert (expected - 0.5).abs().min() < 0.4
    with torch.autocast("cpu", torch.bfloat16):
        lengths = capsule_lengths(layer(inputs, MASK).capsules)
        loss = margin_loss(lengths.float(), torch.eye(K)[:B])
    torch.testing.assert_close(lengths.float(), expected, rtol=0, atol=2e-2)
    found = torch.autograd.grad(loss, [inputs, *layer.parameters()])
    whole = torch.autograd.grad(margin_loss(expected, torch.eye(K)[:B]), [inputs, *layer.parameters()])
    for value, other in zip(found, whole, strict=True):
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value.float(), other, rtol=0.1, atol=0.05 * other.abs().max().item())


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
def test_compiles_to_one_graph(layout, masked):
    layer, inputs, probe = make_layer(layout), make_inputs(requires_grad=True), make_inputs(B, K, D)
    mask = MASK if masked else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = compiled(inputs, mask).capsules, layer(inputs, mask).capsules
    close(found, expected)
    for value, other in zip(gradients(layer, inputs, found, probe), gradients(layer, inputs, expected, probe), strict=True):
        close(value, other)


# --- pipelines ---


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("num_channels", [1, 3])
@torch.no_grad()
def test_image_pipeline_gives_the_lengths(mode, num_channels):
    config = CapsuleConfig(**IMAGES, num_channels=num_channels)
    model = CapsuleForImageClassification(config).eval()
    grey = np.random.default_rng(0).integers(256, size=(14, 12), dtype=np.uint8)
    image = Image.fromarray(grey).convert(mode)
    classify = pipeline(
        "image-classification",
        model=model,
        image_processor=FlowImageProcessor.from_model_config(config),
        function_to_apply="none",
    )
    found = {one["label"]: one["score"] for one in classify(image, top_k=3)}
    pixels = torch.from_numpy(grey).float().expand(1, num_channels, 14, 12) / 255
    lengths = dict(zip(("LABEL_0", "LABEL_1", "LABEL_2"), model(pixels).logits[0].tolist(), strict=True))
    assert found == pytest.approx(lengths, abs=1e-6)


@torch.no_grad()
def test_text_pipeline_gives_the_lengths():
    lines = ["a good phone", "a bad screen, and slow"]
    tokenizer = train_tokenizer(lines, vocab_size=50)
    model = text_model()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none", top_k=None)
    for batch_size in (1, 2):
        for line, scores in zip(lines, classify(lines, batch_size=batch_size), strict=True):
            lengths = model(**tokenizer(line, return_tensors="pt")).logits[0]
            found = {one["label"]: one["score"] for one in scores}
            assert found == pytest.approx({f"LABEL_{c}": lengths[c].item() for c in range(3)}, abs=1e-6)


# --- what must be refused ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"routing_iterations": 0}, "routing_iterations=0 must be at least 1"),
        ({"routing_iterations": -2}, "routing_iterations=-2 must be at least 1"),
        ({"routing_type": "median"}, "routing_type='median'.* 'kmeans', 'replace', 'hinton'"),
        ({"weight_layout": "dense"}, "weight_layout='dense'.* 'shared', 'factored', 'full'"),
        ({"squash_type": "sigmoid"}, "squash_type='sigmoid'.* 'squash', 'tanh', 'exp', 'ratio', 'none'"),
        ({"pooling": "max"}, "pooling='max'.* 'routing', 'mean'"),
        ({"weight_layout": "full"}, "weight_layout='full' .*give image_size, or num_input_capsules"),
        ({"weight_layout": "factored"}, "weight_layout='factored' .*give image_size, or num_input_capsules"),
        ({"weight_layout": "full", "image_size": 12, "num_input_capsules": 7}, r"num_input_capsules=7.*\(12, 12\) give 9"),
        ({"factor_dim": 3}, "factor_dim=3 belongs to weight_layout='factored', not 'shared'"),
        ({"use_decoder": True}, "use_decoder=True needs image_size"),
        ({"use_decoder": True, "image_size": 12, "pooling": "mean"}, "use_decoder=True .*pooling='mean'"),
        ({"margin_negative": 0.9}, "margin_negative=0.9 and margin_positive=0.9 must satisfy .*margin_negative < margin_pos"),
        ({"margin_positive": 0.05}, "margin_negative=0.1 and margin_positive=0.05 must satisfy"),
        ({"margin_positive": 1.1}, "margin_positive=1.1 must satisfy .*<= 1"),
        ({"image_size": 5}, r"image_size=\(5, 5\): nothing is left .*convolution 2"),
        ({"primary_capsule_dim": 3}, "primary_capsule_dim=3 does not divide the 8 channels"),
        ({"conv_padding": True, "conv_kernel_sizes": 4}, "conv_kernel_sizes=4.*odd"),
        ({"conv_kernel_sizes": [3, 3, 3]}, r"conv_kernel_sizes=\[3, 3, 3\] must be one number, or one for each of the 2"),
        ({"conv_strides": 0}, "conv_strides=0 must hold positive"),
        ({"squash_constant": 0.0}, "squash_constant=0.0 must be positive"),
        ({"routing_temperature": math.inf}, "routing_temperature=inf must be positive and finite"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        CapsuleConfig(**(IMAGES | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_kernel_sizes": [3, 3, 3]}, r"conv_kernel_sizes=\[3, 3, 3\] must be one number, or one for each of the 2"),
        ({"conv_strides": 0}, "conv_strides=0 must hold positive"),
        ({"image_size": [12]}, r"image_size=\[12\] must be one side or \(height, width\)"),
        ({"image_size": [12, 12, 1]}, r"image_size=\[12, 12, 1\] must be one side or \(height, width\)"),
    ],
    ids=str,
)
def test_an_image_size_hides_no_message(fields, message):
    with pytest.raises(Exception, match=message):
        CapsuleConfig(**(IMAGES | {"image_size": 12} | fields))


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset='capsules'.* 'article', 'capsnet'"):
        CapsuleConfig.from_preset("capsules")


def images_of(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 1, 12, 12))


def labelled(labels: list) -> partial:
    return partial(CapsuleForImageClassification.forward, pixel_values=images_of(), labels=torch.tensor(labels))


FULL = {"weight_layout": "full", "image_size": 12}


@pytest.mark.parametrize(
    ("fields", "call", "message"),
    [
        (FULL, lambda model: model(images_of(2, 1, 14, 12)), r"'full' .*12x12 pixels .*got 14x12"),
        (IMAGES, labelled([0, 3]), r"labels lie in \[0, 3\], but there are 3 classes, 0 to 2"),
        (IMAGES, labelled([-1, 2]), r"labels lie in \[-1, 2\], but there are 3 classes, 0 to 2"),
        (IMAGES, labelled([[0, 1, 0, 0]] * 2), "4 columns, but there are 3 classes"),
        (IMAGES, labelled([[0, 2, 0]] * 2), "zeros and ones.*2"),
        (IMAGES, labelled([[0.0, 0.5, 0.5]] * 2), "zeros and ones.*0.5"),
        (IMAGES, labelled([0.0, 1.0]), "must be integers, got torch.float32"),
        (IMAGES, labelled([[[0, 1, 0]]] * 2), r"\(batch, 3\), got \(2, 1, 3\)"),
        (IMAGES, labelled([1]), "1.*2|2.*1"),
        (IMAGES, labelled([0, 1, 2]), "3.*2|2.*3"),
        (IMAGES, labelled([[1, 0, 0]]), "1.*2|2.*1"),
        (IMAGES, lambda model: model(images_of(2, 3, 12, 12)), r"\(batch, 1, height, width\), got \(2, 3, 12, 12\)"),
        (IMAGES, lambda model: model(images_of(2, 12, 12)), r"\(batch, 1, height, width\), got \(2, 12, 12\)"),
        (IMAGES, lambda model: model(images_of(2, 1, 12, 5)), r"image_size=\(12, 5\): nothing is left"),
        (DECODER, lambda model: model(images_of(2, 1, 14, 12), torch.tensor([0, 1])), r"\(12, 12\) pixels, got \(14, 12\)"),
        (IMAGES, lambda model: model.reconstruct(images_of(2, 3, 4)), "no decoder: set use_decoder=True"),
        (DECODER, lambda model: model.reconstruct(images_of(2, 4, 4)), r"\(batch, 3, 4\), got \(2, 4, 4\)"),
        (DECODER, lambda model: model.reconstruct(images_of(3, 4)), r"\(batch, 3, 4\), got \(3, 4\)"),
        (DECODER, lambda model: model.reconstruct(images_of(2, 3, 4), torch.tensor([0, 3])), r"\[0, 3\], .*0 to 2"),
        (IMAGES, lambda model: model.predict_labels(images_of(), top_k=0), "top_k=0 must lie between 1 and the 3 classes"),
        (IMAGES, lambda model: model.predict_labels(images_of(), top_k=4), "top_k=4 must lie between 1 and the 3 classes"),
        (IMAGES, lambda model: model.predict_labels(images_of(), threshold=1), r"threshold=1 must lie in \[0, 1\)"),
        (IMAGES, lambda model: model.predict_labels(images_of(), threshold=-0.1), r"threshold=-0.1 must lie in \[0, 1\)"),
        (
            IMAGES,
            lambda model: model.capsule(input_ids=torch.ones(2, 4), attention_mask=torch.ones(2, 4)),
            "takes pixel_values, got input_ids, attention_mask",
        ),
        (IMAGES, lambda model: model.capsule(), "takes pixel_values, got nothing"),
    ],
)
def test_inputs_of_images_that_are_refused(fields, call, message):
    model = CapsuleForImageClassification(CapsuleConfig(**(IMAGES | fields)))
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    ("layout", "arguments", "message"),
    [
        ("shared", (torch.zeros(2, 5, 3),), r"\(batch, n, 4\), got \(2, 5, 3\)"),
        ("shared", (torch.zeros(5, 4),), r"\(batch, n, 4\), got \(5, 4\)"),
        ("shared", (torch.zeros(2, 5, 4), torch.ones(2, 6)), r"\(2, 5\), got \(2, 6\)"),
        ("shared", (torch.zeros(2, 5, 4), torch.ones(5)), r"\(2, 5\), got \(5,\)"),
        ("shared", (torch.zeros(2, 5, 4), torch.tensor([[1] * 5, [0] * 5])), "hides every input of row 1"),
        ("full", (torch.zeros(2, 4, 4),), "'full' .*for 5 inputs, but 4 were given"),
        ("factored", (torch.zeros(2, 6, 4), torch.ones(2, 6)), "'factored' .*for 5 inputs, but 6 were given"),
    ],
)
def test_inputs_of_a_layer_that_are_refused(layout, arguments, message):
    layer: nn.Module = make_layer(layout).float()
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


@pytest.mark.parametrize(
    "settings", [{"routing_type": "median"}, {"routing_iterations": 0}, {"weight_layout": "full"}], ids=str
)
def test_a_layer_checks_its_settings(settings):
    with pytest.raises(Exception, match=next(iter(settings))):
        CapsuleLayer(4, 3, 6, **settings)


def test_texts_and_images_are_not_confused():
    with pytest.raises(ValueError, match="'bert' reads input_ids, not images; use CapsuleForSequenceClassification"):
        CapsuleForImageClassification(CapsuleConfig(**TEXTS))
    with pytest.raises(ValueError, match="a text needs an encoder: give encoder_config"):
        CapsuleForSequenceClassification(CapsuleConfig(**IMAGES))
    with pytest.raises(ValueError, match="use_decoder"):
        text_model(image_size=28, use_decoder=True)(**texts(4, size=4), labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="'full' .*for 16 inputs, but 9 were given"):
        text_model(weight_layout="full", num_input_capsules=16)(torch.ones(2, 9, dtype=torch.long))


def test_route_refuses_what_it_does_not_know():
    predictions = DensePredictions(torch.randn(1, 3, 2, 4))
    with pytest.raises(ValueError, match="routing_type='em'.*'kmeans', 'replace', 'hinton', 'means'"):
        route(predictions, routing_type="em")
    with pytest.raises(ValueError, match="iterations=0 must be at least 1"):
        route(predictions, iterations=0)
