"""Language models of noise contrastive estimation: against naive loops, the exact softmax, and a chain of known entropy."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast

from hfblog import NCEForCausalLM, NCELMConfig
from hfblog.models.contrastive import modeling_nce_lm as modeling

V, LENGTH = 30, 7
# without dropout: a loss must be a function of the batch
BACKBONES = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": V,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
    },
}
COUNTS = torch.arange(1, V + 1)
# every c there is, with a loss that learns it
PARTITIONS = {
    "none": {"log_partition": "none"},
    "fixed": {"log_partition": "fixed", "log_partition_init": 1.5},
    "learned": {"log_partition": "learned", "log_partition_init": 1.5, "output_bias": False},
    "context": {"log_partition": "context", "log_partition_init": 1.5},
}
both_backbones = pytest.mark.parametrize("backbone", list(BACKBONES))


def configure(backbone: str = "gpt2", **changes) -> NCELMConfig:
    settings = {"num_noise_samples": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return NCELMConfig(backbone_config=BACKBONES[backbone], **(settings | changes))


def build(backbone: str = "gpt2", **changes) -> NCEForCausalLM:
    """A model whose every weight counts, with noise that is not uniform."""
    torch.manual_seed(0)
    model = NCEForCausalLM(configure(backbone, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.4)
    model.noise.fit(COUNTS)
    return model


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, V, shape, generator=torch.Generator().manual_seed(seed))


def noise_shape(sharing: str, batch: int, length: int, k: int) -> tuple[int, ...]:
    return {"batch": (k,), "sequence": (batch, k), "token": (batch, length, k)}[sharing]


def next_log_probs(model: NCEForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Exact log-probabilities of the next words of one text, by a fresh pass over every prefix."""
    found = []
    for end in range(1, len(ids)):
        hidden = model.backbone(ids[None, :end]).last_hidden_state[0, -1]
        found.append(model.lm_head(hidden).log_softmax(-1)[ids[end]])
    return torch.stack(found)


# --- scores and losses ---


@pytest.mark.parametrize("k", [1, 4, LENGTH])  # as many noise words as places, too
@pytest.mark.parametrize("bias", [True, False])
def test_scores_of_chosen_words_are_those_of_all_words(bias, k):
    model = build(output_bias=bias)
    hidden = torch.randn(3, LENGTH, 16)
    full = model.lm_head(hidden)
    targets = words(3, LENGTH)
    torch.testing.assert_close(model.word_scores(hidden, targets), full.gather(2, targets[..., None])[..., 0])
    shared = words(k, seed=1)
    torch.testing.assert_close(model.word_scores(hidden, shared), full[..., shared])
    of_rows = words(3, 1, k, seed=2)
    torch.testing.assert_close(model.word_scores(hidden, of_rows), full.gather(2, of_rows.expand(-1, LENGTH, -1)))
    own = words(3, LENGTH, k, seed=3)
    torch.testing.assert_close(model.word_scores(hidden, own), full.gather(2, own))
    model.half()
    for ids in (targets, shared, of_rows, own):  # differences of scores matter, not their size
        assert model.word_scores(hidden.half(), ids).dtype == torch.float32


def naive_losses(model: NCEForCausalLM, hidden: torch.Tensor, targets: torch.Tensor, noise_ids: torch.Tensor) -> torch.Tensor:
    """The table of `nce_loss`, word by word, from weights and counts."""
    weight, bias = model.lm_head.weight.double(), model.lm_head.bias
    log_q = (COUNTS / COUNTS.sum().double()).log()
    k = noise_ids.shape[-1]
    rows = []
    for row in range(len(targets)):
        for place in range(targets.shape[1]):
            h = hidden[row, place].double()

            def score(word, h=h):
                return weight[word] @ h + (0 if bias is None else bias[word].double())

            if model.config.log_partition == "context":
                c = model.partition_layer.weight[0].double() @ h + model.partition_layer.bias[0].double()
            else:
                c = 0.0 if model.log_partition is None else model.log_partition.double()
            own = {1: noise_ids, 2: noise_ids[row], 3: noise_ids[row, place] if noise_ids.ndim == 3 else None}[noise_ids.ndim]
            target = targets[row, place]
            if model.config.loss_type == "nce":
                loss = -torch.sigmoid(score(target) - c - log_q[target] - math.log(k)).log()
                for word in own:
                    loss = loss - torch.sigmoid(-(score(word) - c - log_q[word] - math.log(k))).log()
            elif model.config.loss_type == "density_ratio":
                loss = -torch.sigmoid(score(target) - c).log()
                for word in own:
                    loss = loss - torch.sigmoid(-(score(word) - c)).log() / k
            elif model.config.loss_type == "neg":
                loss = -torch.sigmoid(score(target)).log()
                for word in own:
                    loss = loss - torch.sigmoid(-score(word)).log()
            else:
                correction = log_q if model.config.loss_type == "ranking" else torch.zeros_like(log_q)
                top = (score(target) - correction[target]).exp()
                loss = -(top / (top + sum((score(word) - correction[word]).exp() for word in own))).log()
            rows.append(loss)
    return torch.stack(rows).view(targets.shape)


LOSSES = [(loss, "fixed") for loss in ("nce", "ranking", "random_softmax", "neg", "density_ratio")] + [
    (loss, partition) for loss in ("nce", "density_ratio") for partition in ("none", "learned", "context")
]


@pytest.mark.parametrize("k", [3, 6])  # as many noise words as places, too
@pytest.mark.parametrize("sharing", ["batch", "sequence", "token"])
@pytest.mark.parametrize(("loss_type", "partition"), LOSSES)
def test_sampled_losses_against_a_loop(loss_type, partition, sharing, k):
    model = build(loss_type=loss_type, noise_sharing=sharing, **PARTITIONS[partition])
    hidden = torch.randn(2, 6, 16, requires_grad=True)
    targets, noise_ids = words(2, 6), words(*noise_shape(sharing, 2, 6, k), seed=1)
    upstream = torch.rand(2, 6)
    parts = [hidden, *(p for name, p in model.named_parameters() if not name.startswith("backbone"))]
    found, expected = model.sampled_losses(hidden, targets, noise_ids), naive_losses(model, hidden, targets, noise_ids)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad((found * upstream).sum(), parts, allow_unused=True)
    expected = torch.autograd.grad((expected * upstream).sum(), parts, allow_unused=True)
    assert [gradient is None for gradient in gradients] == [gradient is None for gradient in expected]
    for gradient, of_loop in zip(gradients, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, of_loop, rtol=1e-4, atol=1e-5)


@both_backbones
@pytest.mark.parametrize("sharing", ["batch", "sequence", "token"])
def test_training_loss_is_that_of_the_next_words(backbone, sharing):
    model = build(backbone, noise_sharing=sharing).train()
    ids = words(3, LENGTH)
    noise_ids = words(*noise_shape(sharing, 3, LENGTH - 1, 5), seed=1)
    labels = ids.clone()
    labels[0, 4:] = -100
    labels[2, 1] = -100
    output = model(ids, labels=labels, noise_ids=noise_ids)
    hidden = model.backbone(ids).last_hidden_state
    losses = naive_losses(model, hidden[:, :-1], ids[:, 1:], noise_ids)
    kept = losses[labels[:, 1:] != -100]
    assert kept.shape == (18 - 3 - 1,)
    assert output.logits is None
    torch.testing.assert_close(output.loss, kept.mean().float(), rtol=1e-4, atol=1e-5)
    for count in (50, torch.tensor(50)):
        found = model(ids, labels=labels, noise_ids=noise_ids, num_items_in_batch=count).loss
        torch.testing.assert_close(found, (kept.sum() / 50).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sharing", "shape"), [("batch", (4,)), ("sequence", (3, 4)), ("token", (3, LENGTH - 1, 4))])
def test_noise_is_drawn_as_it_is_shared(sharing, shape):
    model = build(noise_sharing=sharing).train()
    ids = words(3, LENGTH)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(ids, labels=ids).loss)
    torch.manual_seed(1)
    noise_ids = model.draw_noise(3, LENGTH - 1)
    assert noise_ids.shape == shape
    assert torch.equal(model(ids, labels=ids, noise_ids=noise_ids).loss, losses[0])
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    generator = torch.Generator().manual_seed(5)
    again = model.draw_noise(3, LENGTH - 1, torch.Generator().manual_seed(5))
    assert torch.equal(model.draw_noise(3, LENGTH - 1, generator), again)


@pytest.mark.parametrize("partition", ["none", "fixed"])
def test_full_softmax_loss_is_cross_entropy_in_training_and_after(partition):
    model = build(loss_type="full", **PARTITIONS[partition])
    ids = words(3, LENGTH)
    labels = ids.clone()
    labels[1, 5:] = -100
    hidden = model.backbone(ids).last_hidden_state
    expected = F.cross_entropy(model.lm_head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    gradients = torch.autograd.grad(expected, list(model.lm_head.parameters()))
    for mode in (True, False):
        loss = model.train(mode)(ids, labels=labels).loss
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, list(model.lm_head.parameters())), gradients)
        torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=8).loss, expected * 16 / 8)


@pytest.mark.parametrize(
    ("loss_type", "partition"),
    [(loss, "fixed") for loss in ("nce", "ranking", "random_softmax", "neg", "density_ratio", "full")]
    + [("nce", "learned"), ("nce", "context")],
)
def test_evaluation_loss_is_exact_whatever_was_trained(loss_type, partition):
    model = build(loss_type=loss_type, **PARTITIONS[partition])
    ids = words(2, LENGTH)
    labels = ids.clone()
    labels[1, 4:] = -100
    with torch.no_grad():
        log_probs = torch.cat([next_log_probs(model, ids[0]), next_log_probs(model, ids[1, :4])])
        assert log_probs.shape == (6 + 3,)
        output = model(ids, labels=labels)
        torch.testing.assert_close(output.loss, -log_probs.mean())
        assert output.logits.shape == (2, LENGTH, V)
        torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=4).loss, -log_probs.sum() / 4)


def test_outputs_by_other_ways_in():
    model = build()
    model.set_attn_implementation("eager")  # the one that shows its attention
    ids = words(2, LENGTH)
    whole = model(ids, labels=ids, output_hidden_states=True, output_attentions=True)
    assert len(whole.hidden_states) == 3 and whole.hidden_states[0].shape == (2, LENGTH, 16)
    assert len(whole.attentions) == 2 and whole.attentions[0].shape == (2, 2, LENGTH, LENGTH)
    vectors = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=vectors, attention_mask=torch.ones_like(ids)).logits, whole.logits)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole.logits[:, -3:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole.logits[:, [1, 4]])
    as_tuple = model(ids, labels=ids, return_dict=False)
    assert torch.equal(as_tuple[0], whole.loss) and torch.equal(as_tuple[1], whole.logits)


# --- what users ask: scores and how normalised they are ---


@pytest.mark.parametrize("partition", list(PARTITIONS))
@both_backbones
def test_scores_of_tokens(backbone, partition):
    model = build(backbone, **PARTITIONS[partition])
    ids = words(3, LENGTH)
    hidden = model.backbone(ids).last_hidden_state[:, :-1]
    scores = model.lm_head(hidden)
    c = {
        "none": torch.zeros(()),
        "context": model.partition_layer(hidden) if partition == "context" else None,
    }.get(partition, model.log_partition)
    torch.testing.assert_close(model(ids).logits[:, :-1], scores - c)
    followed = ids[:, 1:, None]
    torch.testing.assert_close(model.score_tokens(ids), (scores - c).gather(2, followed)[..., 0])
    exact = scores.log_softmax(-1).gather(2, followed)[..., 0]
    torch.testing.assert_close(model.score_tokens(ids, normalized=True), exact)
    with torch.no_grad():
        torch.testing.assert_close(model.score_tokens(ids, normalized=True)[1], next_log_probs(model, ids[1]))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@both_backbones
def test_scores_and_statistics_do_not_see_padding(backbone, side, normalized):
    """Those of a padded row are its own without padding: 0 at padding, and for a first word, which follows nothing."""
    model = build(backbone, **PARTITIONS["context"])
    texts = [words(LENGTH, seed=1), words(4, seed=2)]
    alone = [model.score_tokens(text[None], normalized=normalized)[0] for text in texts]
    assert all((scores != 0).all() for scores in alone)
    padding = torch.zeros(LENGTH - 4, dtype=torch.long)
    if side == "left":
        ids, mask = torch.cat([padding, texts[1]]), torch.cat([padding, torch.ones_like(texts[1])])
        expected = torch.cat([torch.zeros(LENGTH - 4), alone[1]])
    else:
        ids, mask = torch.cat([texts[1], padding]), torch.cat([torch.ones_like(texts[1]), padding])
        expected = torch.cat([alone[1], torch.zeros(LENGTH - 4)])
    ids, mask = torch.stack([texts[0], ids]), torch.stack([torch.ones_like(mask), mask])
    found = model.score_tokens(ids, mask, normalized=normalized)
    torch.testing.assert_close(found, torch.stack([alone[0], expected]), rtol=1e-4, atol=1e-5)
    assert (found[1] == 0).sum() == LENGTH - 4
    torch.testing.assert_close(model.score_tokens(ids, mask.bool(), normalized=normalized), found)

    by_hand = torch.cat([brute_normalizers(model, text) for text in texts])
    stats = model.partition_stats(ids, mask)
    assert stats.num_contexts == len(by_hand) == 6 + 3
    torch.testing.assert_close(stats.mean, by_hand.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.max, by_hand.max(), rtol=1e-4, atol=1e-5)


def brute_normalizers(model: NCEForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """log sum_w exp(G(w, h) - c) after every place of one text that has a next word."""
    logits = model(ids[None]).logits[0, :-1].detach().double()
    return torch.stack([sum(value.exp() for value in row).log() for row in logits]).float()


@pytest.mark.parametrize("partition", list(PARTITIONS))
def test_partition_stats_against_brute_force(partition, monkeypatch):
    model = build(**PARTITIONS[partition])
    ids = words(3, LENGTH)
    expected = torch.cat([brute_normalizers(model, row) for row in ids])
    for at_a_time in (2**24, 4 * V, 1):  # a bound on memory changes nothing
        monkeypatch.setattr(modeling, "LOGITS_AT_A_TIME", at_a_time)
        stats = model.partition_stats(ids)
        assert stats.num_contexts == 18
        torch.testing.assert_close(stats.mean, expected.mean())
        torch.testing.assert_close(stats.std, ((expected - expected.mean()) ** 2).mean().sqrt(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stats.min, expected.min())
        torch.testing.assert_close(stats.max, expected.max())


def test_partition_moves_with_c_alone():
    model = build(log_partition="fixed", log_partition_init=0.0)
    moved = build(log_partition="fixed", log_partition_init=2.5)
    ids = words(2, LENGTH)
    torch.testing.assert_close(moved(ids).logits, model(ids).logits - 2.5)
    torch.testing.assert_close(moved.score_tokens(ids), model.score_tokens(ids) - 2.5)
    torch.testing.assert_close(moved.score_tokens(ids, normalized=True), model.score_tokens(ids, normalized=True))
    torch.testing.assert_close(moved.partition_stats(ids).mean, model.partition_stats(ids).mean - 2.5)
    torch.testing.assert_close(moved(ids, labels=ids).loss, model(ids, labels=ids).loss)


# --- what depends on data ---


@pytest.mark.parametrize("partition", ["none", "fixed", "context"])
def test_initialize_makes_a_normalised_unigram_model(partition):
    model = NCEForCausalLM(configure(**PARTITIONS[partition])).eval()
    corpus = words(40, 11, seed=3) // 2  # half of the words never occur
    model.initialize(corpus)
    counts = torch.bincount(corpus.flatten(), minlength=V) + 1
    assert torch.equal(model.noise.counts, counts)
    log_unigram = (counts / counts.sum().double()).log().float()
    torch.testing.assert_close(model.noise.log_probs, log_unigram)
    ids = words(3, LENGTH)
    stats = model.partition_stats(ids)
    assert stats.mean.abs() < 0.1 and stats.std < 0.2
    # but for what small random weights add, exactly
    with torch.no_grad():
        model.lm_head.weight.zero_()
        if model.partition_layer is not None:
            model.partition_layer.weight.zero_()
    torch.testing.assert_close(model(ids).logits, log_unigram.expand(3, LENGTH, V), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.score_tokens(ids), log_unigram[ids[:, 1:]], rtol=1e-5, atol=1e-5)
    stats = model.partition_stats(ids)
    assert max(abs(stats.mean), abs(stats.min), abs(stats.max), stats.std) < 1e-5


def test_initialize_without_a_bias_sets_the_noise_alone():
    model = NCEForCausalLM(configure(**PARTITIONS["learned"]))
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.initialize(words(40, 11))
    assert model.lm_head.bias is None and not torch.equal(model.noise.counts, torch.ones(V).long())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_padding_is_not_counted():
    model, other = NCEForCausalLM(configure()), NCEForCausalLM(configure())
    ids = words(4, LENGTH)
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    mask[2, :2] = 0
    model.initialize(ids, mask, generator=torch.Generator())
    other.initialize(torch.cat([ids[0], ids[1, :3], ids[2, 2:], ids[3]]))
    assert torch.equal(model.noise.counts, other.noise.counts) and torch.equal(model.lm_head.bias, other.lm_head.bias)
    assert model.noise.counts.sum() == V + 28 - 4 - 2


def test_noise_of_a_power_leaves_the_bias_the_unigram_law():
    model = NCEForCausalLM(configure(noise_power=0.5))
    model.fit_noise(COUNTS)
    torch.testing.assert_close(model.noise.log_probs, COUNTS.double().sqrt().log().log_softmax(0).float())
    torch.testing.assert_close(model.lm_head.bias, (COUNTS / COUNTS.sum()).log())


@pytest.mark.parametrize(("word", "message"), [(V, rf"\[0, {V}\), but range from 2 to {V}"), (-1, "range from -1 to")])
def test_words_outside_the_vocabulary_are_refused(word, message):
    model = NCEForCausalLM(configure())
    ids = words(4, LENGTH)
    ids[0, 0], ids[1, 1] = 2, word
    with pytest.raises(ValueError, match=message):
        model.initialize(ids)
    mask = torch.ones_like(ids)
    mask[1, 1] = 0
    model.initialize(ids, mask)  # padding may be anything


def test_counts_that_make_no_noise_are_refused():
    model = NCEForCausalLM(configure())
    counts = COUNTS.clone()
    counts[[4, 9]] = 0
    with pytest.raises(ValueError, match="2 of 30 words have a count of 0, word 4 first.*smoothing=1"):
        model.fit_noise(counts)
    model.fit_noise(counts, smoothing=1)
    assert model.noise.counts[[4, 9, 0]].tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match=r"counts must be \(30,\)"):
        model.fit_noise(COUNTS[1:])


# --- c ---


@pytest.mark.parametrize("partition", list(PARTITIONS))
def test_where_c_lives_and_what_it_learns(partition):
    model = NCEForCausalLM(configure(**PARTITIONS[partition])).train()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    assert ("log_partition" in parameters) == (partition == "learned")
    assert ("log_partition" in buffers) == (partition == "fixed")
    assert ("partition_layer.weight" in parameters) == (partition == "context")
    assert any("partition" in name for name in model.state_dict()) == (partition != "none")
    c = model.log_partition_of(torch.zeros(2, 3, 16))
    assert c.dtype == torch.float32 and c.shape == ((2, 3) if partition == "context" else ())
    torch.testing.assert_close(c, torch.full_like(c, 0.0 if partition == "none" else 1.5))
    ids = words(3, LENGTH)
    model(ids, labels=ids, noise_ids=words(4, seed=1)).loss.backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_c_of_a_context_depends_on_the_context():
    model = build(**PARTITIONS["context"])
    ids = words(2, LENGTH)
    hidden = model.backbone(ids).last_hidden_state
    c = model.log_partition_of(hidden)
    assert c.shape == (2, LENGTH) and c.std() > 0.1
    torch.testing.assert_close(c, hidden @ model.partition_layer.weight[0] + model.partition_layer.bias)
    torch.testing.assert_close(model(ids).logits, model.lm_head(hidden) - c[..., None])


# --- generation ---

CACHES = [{"use_cache": False}, {}, {"cache_implementation": "static"}]


def greedy(model: NCEForCausalLM, text: torch.Tensor, count: int) -> torch.Tensor:
    """Continuation of one text by whole passes, no cache, no end."""
    for _ in range(count):
        scores = model.lm_head(model.backbone(text).last_hidden_state[:, -1])
        scores[:, model.config.eos_token_id] = -torch.inf
        text = torch.cat([text, scores.argmax(-1, keepdim=True)], dim=1)
    return text


@pytest.mark.parametrize("cache", CACHES, ids=str)
@both_backbones
def test_generation_of_a_padded_batch_is_one_by_one(backbone, cache):
    model = build(backbone, **PARTITIONS["context"])
    texts = [words(1, 5, seed=1), words(1, 3, seed=2)]
    with torch.no_grad():
        expected = torch.cat([greedy(model, text, 8)[:, -8:] for text in texts])
    padded = torch.zeros(2, 5, dtype=torch.long)
    padded[0], padded[1, 2:] = texts[0][0], texts[1][0]
    settings = {"attention_mask": (padded != 0).long(), "max_new_tokens": 8, "suppress_tokens": [1], "do_sample": False}
    found = model.generate(padded, **settings, **cache)
    assert torch.equal(found[:, :5], padded)
    assert torch.equal(found[:, 5:], expected)
    assert len(set(expected.flatten().tolist())) > 3


@pytest.mark.parametrize("cache", CACHES[1:], ids=str)
@both_backbones
def test_beams_with_cache_are_beams_without(backbone, cache):
    """Scores, not only texts: a beam that kept another beam's cache would differ."""
    model = build(backbone)
    ids = words(2, 4)
    settings = {
        "num_beams": 4,
        "num_return_sequences": 2,
        "max_new_tokens": 8,
        "return_dict_in_generate": True,
        "output_scores": True,
        "suppress_tokens": [1],
    }
    whole, cached = model.generate(ids, use_cache=False, **settings), model.generate(ids, **settings, **cache)
    assert torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(cached.sequences_scores, whole.sequences_scores, rtol=1e-4, atol=1e-4)
    # a score is the mean log-probability, exactly normalised
    log_probs = model.score_tokens(whole.sequences, normalized=True)[:, -8:].mean(1)
    torch.testing.assert_close(whole.sequences_scores, log_probs, rtol=1e-4, atol=1e-4)


def test_drawn_words_follow_the_softmax():
    model = build()
    ids = words(1, 4)
    torch.manual_seed(0)
    drawn = model.generate(ids.expand(4000, -1), do_sample=True, top_k=0, max_new_tokens=1)[:, -1]
    with torch.no_grad():
        expected = model(ids).logits[0, -1].softmax(-1).double()
    found = torch.bincount(drawn, minlength=V).double() / 4000
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-3).all()
    assert expected.max() < 0.9


def test_drawn_texts_repeat_with_the_seed():
    model = build("llama")
    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6, "suppress_tokens": [1]}
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(words(2, 4), **settings))
    assert texts[0].shape == (6, 10)
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


@both_backbones
def test_texts_end_with_the_last_position(backbone):
    model = build(backbone)
    assert model.generate(words(1, 4), suppress_tokens=[1]).shape == (1, 40)
    assert model.generate(words(1, 4), suppress_tokens=[1], max_length=9).shape == (1, 9)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@both_backbones
def test_logits_with_cache_and_without(backbone, name):
    model = build(backbone, **PARTITIONS["context"])
    ids = words(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    whole = model(ids, mask).logits
    cache, parts = None, []
    for end in (4, 5, 8, 9):
        start = sum(part.shape[1] for part in parts)
        output = model(ids[:, start:end], mask[:, :end], use_cache=True, **{name: cache})
        cache = next(output[key] for key in modeling.CACHE_NAMES if output.get(key) is not None)
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask == 1], whole[mask == 1], rtol=1e-4, atol=1e-5)
    assert all(model(ids, mask, use_cache=False).get(key) is None for key in modeling.CACHE_NAMES)


def test_a_cache_goes_to_the_backbone_under_its_own_name(monkeypatch):
    """Releases of transformers differ in what they call it."""
    model = build()
    given = {}

    def forward(input_ids=None, attention_mask=None, **kwargs):
        given.clear()
        given.update(kwargs)
        return BaseModelOutputWithPast(last_hidden_state=torch.zeros(*input_ids.shape, 16))

    monkeypatch.setattr(model.backbone, "forward", forward)
    for theirs in modeling.CACHE_NAMES:
        model.cache_name = theirs
        for ours in modeling.CACHE_NAMES:
            model(words(1, 2), **{ours: "what it remembers"})
            assert {key: value for key, value in given.items() if key in modeling.CACHE_NAMES} == {theirs: "what it remembers"}


# --- vocabulary ---


@both_backbones
def test_tied_words_stay_tied(backbone, tmp_path):
    model = build(backbone, tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ids = words(2, LENGTH)
    model.train()(ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad is model.get_input_embeddings().weight.grad
    model.eval().save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.tie_word_embeddings
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    untied = build(backbone)
    assert not torch.equal(untied.lm_head.weight, untied.get_input_embeddings().weight)


@pytest.mark.parametrize("size", [V + 5, V - 7])
@pytest.mark.parametrize("tied", [True, False])
@both_backbones
def test_resized_vocabulary(backbone, tied, size, tmp_path):
    model = build(backbone, tie_word_embeddings=tied, noise_power=0.5)
    kept = min(size, V)
    ids = words(2, LENGTH) % kept
    before = model(ids).logits
    embeddings = model.resize_token_embeddings(size, mean_resizing=False)
    assert embeddings is model.get_input_embeddings() and embeddings.weight.shape == (size, 16)
    assert model.lm_head.weight.shape == (size, 16) and model.lm_head.bias.shape == (size,)
    assert (model.lm_head.weight is embeddings.weight) == tied
    assert model.config.vocab_size == model.config.backbone_config.vocab_size == size
    torch.testing.assert_close(model(ids).logits[..., :kept], before[..., :kept])

    counts = torch.cat([COUNTS, torch.ones(5, dtype=torch.long)])[:size]  # new words are counted once
    assert torch.equal(model.noise.counts, counts) and model.noise.vocab_size == size
    torch.testing.assert_close(model.noise.log_probs, counts.double().sqrt().log().log_softmax(0).float())
    drawn = torch.bincount(model.noise.sample(20_000, torch.Generator().manual_seed(0)), minlength=size) / 20_000
    torch.testing.assert_close(drawn, model.noise.log_probs.exp(), rtol=0, atol=0.01)

    assert model.train()(ids, labels=ids).loss.isfinite()
    model.eval().save_pretrained(tmp_path)
    loaded = NCEForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.vocab_size == size and torch.equal(loaded.noise.log_probs, model.noise.log_probs)
    assert loaded.generate(ids, max_new_tokens=3).max() < size
    loaded.initialize(torch.arange(size))
    torch.testing.assert_close(loaded.noise.log_probs, torch.full((size,), -math.log(size)))


def test_resizing_to_the_same_size_keeps_the_noise():
    model = build()
    noise = model.noise
    assert model.resize_token_embeddings() is model.resize_token_embeddings(V) is model.get_input_embeddings()
    assert model.noise is noise


# --- gradients ---


@pytest.mark.parametrize("sharing", ["batch", "sequence", "token"])
@pytest.mark.parametrize("bias", [True, False])
def test_sparse_gradients_are_the_dense_ones_in_the_rows_that_were_drawn(bias, sharing):
    ids, noise_ids = words(2, LENGTH), words(*noise_shape(sharing, 2, LENGTH - 1, 4), seed=1)
    drawn = set(ids[:, 1:].flatten().tolist()) | set(noise_ids.flatten().tolist())
    assert len(drawn) < V
    models = {}
    for sparse in (True, False):
        model = build(sparse_gradients=sparse, noise_sharing=sharing, output_bias=bias).train()
        loss = model(ids, labels=ids, noise_ids=noise_ids).loss
        loss.backward()
        models[sparse] = model
    for name, parameter in models[False].named_parameters():
        other = dict(models[True].named_parameters())[name]
        if name.startswith("lm_head"):
            assert other.grad.layout == torch.sparse_coo and parameter.grad.layout == torch.strided
            assert set(other.grad.coalesce().indices()[0].tolist()) == drawn
            torch.testing.assert_close(other.grad.to_dense(), parameter.grad)
        else:
            torch.testing.assert_close(other.grad, parameter.grad)
    for model in models.values():
        before = model.lm_head.weight.detach().clone()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        moved = (model.lm_head.weight != before).any(1).nonzero()[:, 0].tolist()
        assert set(moved) == drawn
    torch.testing.assert_close(models[True].state_dict(), models[False].state_dict())
    adagrad = torch.optim.Adagrad(models[True].lm_head.parameters())
    adagrad.step()
    assert models[True](ids, labels=ids).loss.isfinite()


@both_backbones
def test_checkpointed_gradients_are_the_same(backbone):
    ids, noise_ids = words(2, LENGTH), words(4, seed=1)
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = build(backbone, **PARTITIONS["context"]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        count = []
        (model.backbone.h if backbone == "gpt2" else model.backbone.layers)[0].mlp.register_forward_pre_hook(
            lambda *_, count=count: count.append(1)
        )
        model(ids, labels=ids, noise_ids=noise_ids).loss.backward()
        passes.append(len(count))
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert passes == [1, 2]  # computed again on the way back
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


# --- files and precision ---


@pytest.mark.parametrize("partition", list(PARTITIONS))
def test_saved_and_loaded_bit_by_bit(partition, tmp_path):
    model = build(**PARTITIONS[partition])
    with torch.no_grad():
        model.noise.fit(words(V, seed=4))
    model.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert {"noise.counts", "noise.log_probs", "noise.keep", "noise.alias"} <= set(loaded.state_dict())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value) and loaded.state_dict()[name].dtype == value.dtype, name
    assert torch.equal(*(one.noise.sample(50, torch.Generator().manual_seed(0)) for one in (model, loaded)))
    ids = words(2, LENGTH)
    for mode in (True, False):
        torch.manual_seed(0)
        expected = model.train(mode)(ids, labels=ids).loss
        torch.manual_seed(0)
        assert torch.equal(loaded.train(mode)(ids, labels=ids).loss, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("partition", list(PARTITIONS))
def test_low_precision_leaves_noise_and_loss_alone(partition, dtype, tmp_path):
    model = build(**PARTITIONS[partition])
    model.save_pretrained(tmp_path)
    loaded = NCEForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.lm_head.weight.dtype == loaded.backbone.dtype == dtype
    for name in ("counts", "log_probs", "keep", "alias"):
        expected, found = getattr(model.noise, name), getattr(loaded.noise, name)
        assert found.dtype == expected.dtype and torch.equal(found, expected), name
    if model.log_partition is not None:
        assert loaded.log_partition.dtype == torch.float32 and torch.equal(loaded.log_partition, model.log_partition)
    ids, noise_ids = words(2, LENGTH), words(4, seed=1)
    for mode in (True, False):
        output = loaded.train(mode)(ids, labels=ids, noise_ids=noise_ids)
        assert output.loss.dtype == torch.float32 and output.loss.isfinite()
        expected = model.train(mode)(ids, labels=ids, noise_ids=noise_ids).loss
        torch.testing.assert_close(output.loss, expected, rtol=0.05, atol=0.05)
    assert output.logits.dtype == dtype
    assert loaded.score_tokens(ids).dtype == torch.float32
    loaded.train()(ids, labels=ids, noise_ids=noise_ids).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in loaded.parameters())


@pytest.mark.parametrize("loss_type", ["nce", "density_ratio", "neg", "ranking", "random_softmax"])
@pytest.mark.parametrize("sharing", ["batch", "sequence", "token"])
def test_losses_of_large_half_precision_scores_are_finite(sharing, loss_type):
    """Scores of tens of thousands: no exponential of them, and no sum of losses, fits into float16."""
    model = build(loss_type=loss_type, noise_sharing=sharing).half()
    model.noise.float()
    hidden = (torch.randn(2, 6, 16) * 1000).half().requires_grad_()
    targets, noise_ids = words(2, 6), words(*noise_shape(sharing, 2, 6, 4), seed=1)
    losses = model.sampled_losses(hidden, targets, noise_ids)
    assert losses.dtype == torch.float32 and losses.isfinite().all() and losses.max() > 500
    (losses.mean()).backward()
    assert hidden.grad.isfinite().all() and model.lm_head.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loss_under_autocast(dtype):
    model = build(**PARTITIONS["context"]).train()
    ids, noise_ids = words(2, LENGTH), words(2, 4, seed=1)
    expected = model(ids, labels=ids, noise_ids=noise_ids).loss
    with torch.autocast("cpu", dtype):
        loss = model(ids, labels=ids, noise_ids=noise_ids).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- training ---

CHAIN_WORDS, CHAIN_LENGTH = 200, 16


@pytest.fixture(scope="module")
def chain() -> dict:
    """Texts of a Markov chain whose frequencies fall like a language's, and its entropies in nats a word."""
    generator = torch.Generator().manual_seed(0)
    size = CHAIN_WORDS
    odds = 1.5 * torch.randn(size, size, generator=generator).double() - torch.arange(1, size + 1).double().log()
    step = odds.softmax(1)
    law = torch.full((size,), 1 / size, dtype=torch.float64)
    for _ in range(200):
        law = law @ step

    def draw(count: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        texts = [torch.multinomial(law, count, True, generator=generator)]
        for _ in range(CHAIN_LENGTH - 1):
            texts.append(torch.multinomial(step[texts[-1]], 1, generator=generator)[:, 0])
        return torch.stack(texts, 1)

    return {
        "train": draw(4000, 1),
        "test": draw(1000, 2),
        "entropy": -(law[:, None] * step * step.log()).sum().item(),
        "unigram_entropy": -(law * law.log()).sum().item(),
    }


@pytest.fixture(scope="module")
def trained(chain):
    """Perplexity, that of the scores as they are, and how normalised they are, of a loss; one training for each."""
    found = {}

    def train(loss_type: str) -> dict[str, float]:
        if loss_type not in found:
            torch.manual_seed(0)
            backbone = {
                "model_type": "llama",
                "vocab_size": CHAIN_WORDS,
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": CHAIN_LENGTH,
            }
            settings = {"loss_type": loss_type, "num_noise_samples": 20, "noise_sharing": "sequence"}
            model = NCEForCausalLM(NCELMConfig(backbone_config=backbone, **settings)).train()
            model.initialize(chain["train"])
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 300)
            generator = torch.Generator().manual_seed(3)
            for _ in range(300):
                batch = chain["train"][torch.randint(4000, (64,), generator=generator)]
                optimizer.zero_grad()
                model(batch, labels=batch).loss.backward()
                optimizer.step()
                schedule.step()
            model.eval()
            with torch.no_grad():
                exact = model(chain["test"], labels=chain["test"]).loss
            stats = model.partition_stats(chain["test"])
            found[loss_type] = {
                "perplexity": exact.exp().item(),
                "unnormalized": (-model.score_tokens(chain["test"]).mean()).exp().item(),
                "mean": stats.mean.item(),
                "std": stats.std.item(),
            }
        return found[loss_type]

    return train


def test_noise_contrast_learns_a_chain_as_the_softmax_does(chain, trained):
    full, nce = trained("full"), trained("nce")
    best, unigram = math.exp(chain["entropy"]), math.exp(chain["unigram_entropy"])
    assert best < full["perplexity"] < 1.3 * best < 0.6 * unigram
    assert best < nce["perplexity"] < 1.1 * full["perplexity"]
    # the scores are log-probabilities by themselves
    assert abs(nce["mean"]) < 0.3 and nce["std"] < 0.5
    assert nce["unnormalized"] == pytest.approx(nce["perplexity"], rel=0.1)
    assert full["unnormalized"] != pytest.approx(full["perplexity"], rel=0.3)


def test_without_the_noise_probabilities_a_language_model_is_none(chain, trained):
    full, neg = trained("full"), trained("neg")
    assert neg["perplexity"] > 1.8 * full["perplexity"]
    assert neg["perplexity"] > math.exp(chain["unigram_entropy"])  # worse than knowing no context
    assert abs(neg["mean"]) > 1


# --- configurations ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "hinge"}, "loss_type='hinge' is not known; it must be one of 'nce', 'density_ratio'"),
        ({"loss_type": "conditional"}, "loss_type='conditional' is not known"),
        ({"noise_sharing": "world"}, "noise_sharing='world' is not known; it must be one of 'batch', 'sequence', 'token'"),
        ({"log_partition": "guessed"}, "log_partition='guessed' is not known.*'none', 'fixed', 'learned', 'context'"),
        ({"num_noise_samples": 0}, "num_noise_samples=0 must be positive"),
        ({"num_noise_samples": "5"}, "num_noise_samples"),
        ({"initializer_range": -0.1}, "initializer_range=-0.1 must be positive"),
        ({"noise_power": math.inf}, "noise_power=inf must be finite"),
        ({"noise_power": math.nan}, "noise_power=nan must be finite"),
        ({"log_partition": "learned"}, "log_partition='learned' with output_bias=True says one thing twice"),
        (
            {"log_partition": "learned", "output_bias": False, "loss_type": "ranking"},
            "'learned' learns nothing from loss_type='ranking'",
        ),
        ({"log_partition": "context", "loss_type": "full"}, "'context' learns nothing from loss_type='full'"),
        ({"log_partition": "context", "loss_type": "neg"}, "'context' learns nothing from loss_type='neg'"),
        ({"log_partition": "none", "log_partition_init": 1.0}, "log_partition_init=1.0 has no place in log_partition='none'"),
        ({"sparse_gradients": True, "loss_type": "full"}, "sparse_gradients=True with loss_type='full'"),
        ({"sparse_gradients": True, "tie_word_embeddings": True}, "sparse_gradients=True .* tie_word_embeddings=True"),
        ({"backbone_config": {"vocab_size": 9}}, "backbone_config names no model_type, such as 'gpt2'"),
        ({"backbone_config": {"model_type": "gpt17"}}, "backbone_config has model_type='gpt17', which is no model"),
        ({"backbone_config": {"model_type": "vit"}}, "backbone_config of model_type='vit' does not state vocab_size"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        NCELMConfig(**({"backbone_config": BACKBONES["gpt2"]} | changes))


def test_a_backbone_must_state_its_width():
    config = transformers.GPT2Config(vocab_size=9)
    config.hidden_size = None
    with pytest.raises(Exception, match="backbone_config of model_type='gpt2' does not state hidden_size"):
        NCELMConfig(backbone_config=config)


@pytest.mark.parametrize(
    "changes",
    [
        {"log_partition": "learned", "output_bias": False},
        {"log_partition": "context", "loss_type": "density_ratio"},
        {"log_partition": "none"},
        {"sparse_gradients": True, "loss_type": "ranking"},
        {"noise_power": 0.0},
        {"noise_power": -1},
    ],
    ids=str,
)
def test_settings_that_fit(changes, tmp_path):
    config = configure(**changes)
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is NCELMConfig and loaded.to_diff_dict() == config.to_diff_dict()
    assert all(getattr(loaded, name) == value for name, value in changes.items())


def test_a_configuration_speaks_for_its_backbone():
    config = NCELMConfig()
    assert config.backbone_config.model_type == "gpt2" and config.vocab_size == 50257
    config = configure("llama")
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (V, 16, 2)
    assert config.backbone_config.pad_token_id == 0 and config.backbone_config.eos_token_id == 1
    assert config.get_text_config() is config.backbone_config
    config.vocab_size = 41
    assert config.backbone_config.vocab_size == 41 and config.to_dict()["vocab_size"] == 41
    without = {name: value for name, value in BACKBONES["gpt2"].items() if name != "vocab_size"}
    assert NCELMConfig(backbone_config=without, vocab_size=17).backbone_config.vocab_size == 17
    given = transformers.GPT2Config(vocab_size=11, n_embd=8)
    assert NCELMConfig(backbone_config=given).backbone_config is given


def test_nothing_to_count_is_named():
    model = build()
    for ids, mask in ((torch.zeros(0, 4, dtype=torch.long), None), (torch.ones(2, 4, dtype=torch.long), torch.zeros(2, 4))):
        with pytest.raises(ValueError, match="there are no words to count"):
            model.initialize(ids, mask)
    with pytest.raises(Exception, match="log_partition_init=inf must be finite"):
        configure(log_partition_init=math.inf)


def test_the_loss_is_that_of_all_places_whatever_logits_are_kept():
    model = build().eval()
    ids = words(2, 6)
    whole = model(ids, labels=ids)
    for kept in (1, 3, torch.tensor([0, 4])):
        output = model(ids, labels=ids, logits_to_keep=kept)
        assert torch.equal(output.loss, whole.loss)
        place = slice(-kept, None) if isinstance(kept, int) else kept
        assert torch.equal(output.logits, whole.logits[:, place])
