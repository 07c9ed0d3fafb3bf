"""Head labels: hand-set patterns get theirs, uniform attention is chance, and real heads are found."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders_gemma import gemma
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.lenses import Repeated, label_heads
from crosspatch.lenses.labels import TARGETS, Tally, repeated_prompts, targets_of
from crosspatch.models import open_model
from naive.families import patterns as own_patterns
from zoo import fresh, make_pair, make_task, opened

PROMPT = (3, 8, 9, 4, 8, 6, 9, 4, 5, 8)  # 8 at 1, 4, 9; 9 at 2, 6; 4 at 3, 7
AIM = (9, frozenset({9}))
WIDTH = len(PROMPT)
CAUSAL = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()


def keys(target, query, *, prompt=PROMPT, aim=AIM, width=WIDTH):
    marked = targets_of(prompt, aim, width)[TARGETS.index(target), query]
    return marked.nonzero().flatten().tolist()


def test_targets_are_what_their_names_say():
    """One prompt, read off by eye."""
    assert keys("previous token", 5) == [4]
    assert keys("self", 5) == [5]
    assert keys("first token", 5) == [0]
    assert keys("duplicate token", 9) == [1, 4]
    assert keys("duplicate token", 5) == []
    assert keys("induction", 9) == [2, 5]
    assert keys("induction", 7) == [4]
    assert keys("to answer", 9) == [2, 6]
    assert keys("to answer", 8) == []


def test_a_token_said_twice_in_a_row_is_not_its_own_successor():
    """The token after the first 8 is the second 8 itself: no key before the query, so no induction."""
    assert keys("induction", 3, prompt=(3, 4, 8, 8), aim=(3, frozenset()), width=4) == []


def test_queries_0_and_1_and_padding_have_no_targets():
    """Where only one or two keys are allowed, targets coincide; beyond a prompt's end there is nothing."""
    marked = targets_of(PROMPT, AIM, WIDTH + 3)
    assert not marked[:, :2].any()
    assert not marked[:, WIDTH:].any()
    assert not marked[:, :, WIDTH:].any()


def tallied(pattern, allowed=CAUSAL):
    """Score one layer with one head that has this pattern."""
    tally = Tally.empty(1, 1)
    tally.add(0, pattern[None, None], targets_of(PROMPT, AIM, WIDTH)[:, None], allowed)
    return tally.labels("model", "by hand")


def towards(key_of):
    """Attend fully to one key a query."""
    pattern = torch.zeros(WIDTH, WIDTH)
    for query in range(WIDTH):
        pattern[query, key_of(query)] = 1
    return pattern


def latest(query, shift):
    """Find the key `shift` behind the last earlier copy of the query's token, else rest at the first token."""
    return next((k + shift for k in range(query - 1, -1, -1) if PROMPT[k] == PROMPT[query] and k + shift < query), 0)


@pytest.mark.parametrize(
    ("label", "key_of"),
    [
        ("previous token", lambda q: max(q - 1, 0)),
        ("self", lambda q: q),
        ("first token", lambda q: 0),
        ("duplicate token", lambda q: latest(q, 0)),
        ("induction", lambda q: latest(q, 1)),
    ],
)
def test_a_hand_set_pattern_gets_its_label(label, key_of):
    """Attention on one target: score 1, and its name comes first; no other such head has it."""
    labels = tallied(towards(key_of))
    assert labels.score(label)[0, 0] == pytest.approx(1)
    assert labels.of(0, 0)[0] == label
    assert labels.heads(label)[0].unit == 0
    others = [name for name in labels.of(0, 0)[1:] if name != "first token"]
    assert not others


def test_attention_to_the_answer_is_seen_from_the_end_only():
    """Four prompts whose last token attends to the answer; elsewhere the head rests. One is too few for a label."""
    pattern = towards(lambda q: 6 if q == WIDTH - 1 else 0)
    assert tallied(pattern).score("to answer")[0, 0] == 1
    assert tallied(pattern).of(0, 0) == ("first token",)
    tally = Tally.empty(1, 1)
    targets = torch.stack([targets_of(PROMPT, AIM, WIDTH)] * 4, dim=1)
    tally.add(0, pattern[None, None].expand(4, 1, -1, -1), targets, CAUSAL)
    assert tally.labels("model", "by hand").of(0, 0) == ("to answer", "first token")


def test_a_tie_has_no_label():
    """Half on itself, half on the token before: neither leads."""
    mixed = (towards(lambda q: q) + towards(lambda q: max(q - 1, 0))) / 2
    labels = tallied(mixed)
    assert labels.score("self")[0, 0] == labels.score("previous token")[0, 0] == pytest.approx(0.5)
    assert labels.of(0, 0) == ()
    assert labels.rivals[TARGETS.index("self"), 0, 0] == pytest.approx(0.5)


def naive_scores(pattern, allowed, prompts, aims):
    """Average attention to each target over queries, one query at a time: {target: (score, chance, queries)}."""
    found = {}
    for name in TARGETS:
        rows = []
        for weights, prompt, (end, answers) in zip(pattern, prompts, aims, strict=True):
            for q in range(2, len(prompt)):
                before = [k for k in range(q) if prompt[k] == prompt[q]]
                wanted = {
                    "to answer": [k for k in range(q) if q == end and prompt[k] in answers],
                    "induction": [k + 1 for k in before if k + 1 < q],
                    "duplicate token": before,
                    "previous token": [q - 1],
                    "self": [q],
                    "first token": [0],
                }[name]
                seen = [k for k in wanted if allowed[q][k]]
                if seen:
                    rows.append((float(weights[q][seen].sum()), len(seen) / int(sum(allowed[q]))))
        found[name] = (*np.mean(rows, axis=0), len(rows)) if rows else (np.nan, np.nan, 0)
    return found


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_oss", "gpt2"])
def test_scores_are_what_counting_gives(name):
    """Every head and target, against a loop over queries on the model's own patterns, windows included."""
    prompts = [(3, 8, 9, 4, 8, 9, 9, 3, 5), (3, 8, 5, 6, 8, 9), (7, 7, 9, 4, 8, 6, 9, 4, 5)]
    pairs = [make_pair(len(p), (1,), right=((9,),)) for p in prompts]
    pairs = [
        type(pair)(p, pair.corrupt, pair.right, pair.wrong, pair.names) for p, pair in zip(prompts, pairs, strict=True)
    ]
    labels = label_heads(opened(name), make_task(*pairs))
    windows = {"mistral": (4, 4, 4), "gemma3": (4, 4, 9), "gpt_oss": (4, 9, 4)}.get(name, (9, 9, 9))
    own = [own_patterns(name, p, torch.float32) for p in prompts]
    for layer in range(3):
        allowed = [[k <= q and q - k < windows[layer] for k in range(9)] for q in range(9)]
        for head in range(4):
            rows = [patterns[layer][head].numpy() for patterns in own]
            expected = naive_scores(rows, allowed, prompts, [(len(p) - 1, {9}) for p in prompts])
            for place, target in enumerate(TARGETS):
                score, chance, count = expected[target]
                assert labels.queries[place, layer] == count
                assert labels.scores[place, layer, head] == pytest.approx(score, abs=1e-5, nan_ok=True)
                assert labels.chance[place, layer, head] == pytest.approx(chance, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_uniform_attention_is_chance(name):
    """Queries of zero attend evenly to all that the mask allows: every score is chance, and nothing has a label."""
    module = fresh(name)
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            if layer.self_attn.q_proj.bias is not None:
                layer.self_attn.q_proj.bias.zero_()
    labels = label_heads(open_model(module), Repeated(n=3, length=6))
    np.testing.assert_allclose(labels.scores, labels.chance, atol=1e-6)
    assert not labels.holds().any()


def test_a_sink_is_not_in_chance():
    """Gpt-oss with queries of zero: the sink takes its share, so scores fall short of chance."""
    module = fresh("gpt_oss")
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.q_proj.bias.zero_()
    labels = label_heads(open_model(module), Repeated(n=3, length=6))
    there = ~np.isnan(labels.scores)
    assert (labels.scores[there] < labels.chance[there]).all()


def test_repeated_prompts_are_said_twice():
    """Random ids, then the same again; another seed draws others, and special tokens are left out."""
    prompts, aims = repeated_prompts(opened("llama"), Repeated(n=4, length=5, seed=1))
    assert all(len(prompt) == 10 and prompt[:5] == prompt[5:] for prompt in prompts)
    assert aims[0][1] == frozenset()
    assert prompts != repeated_prompts(opened("llama"), Repeated(n=4, length=5, seed=2))[0]
    with pytest.raises(BadInput, match="at least 1 prompt"):
        repeated_prompts(opened("llama"), Repeated(n=0))


def test_repeated_prompts_begin_with_bos():
    """The tokenizer's own, which is never drawn."""
    from builders_tasks import word_tokenizer

    tokenizer = word_tokenizer()
    prompts, _ = repeated_prompts(replace(opened("llama"), tokenizer=tokenizer), Repeated(n=3, length=90))
    special = set(tokenizer.all_special_ids)
    assert all(prompt[0] == tokenizer.bos_token_id and not special & set(prompt[1:]) for prompt in prompts)


def test_answers_are_not_a_target_of_random_tokens():
    """No query has one: the score is not a number, and no map is drawn."""
    labels = label_heads(opened("llama"), Repeated(n=2, length=4))
    assert np.isnan(labels.score("to answer")).all()
    assert len(labels.panels()) == len(TARGETS) - 1


def test_words_that_do_not_exist():
    """Targets, runs, and families without patterns."""
    with pytest.raises(UnknownName, match="unknown target"):
        tallied(CAUSAL.float()).score("name mover")
    with pytest.raises(UnknownName, match="unknown run"):
        label_heads(opened("llama"), make_task(make_pair(6, (2,))), run="other")
    with pytest.raises(BadInput, match="its own code"):
        label_heads(opened("bloom"), Repeated())


def test_it_shows_itself(tmp_path):
    """In a shell, in a notebook without script, as a tidy table, and on disk."""
    labels = label_heads(opened("llama"), Repeated(n=2, length=4))
    frame = labels.to_frame()
    assert len(frame) == len(TARGETS) * 12
    row = frame[(frame["head"] == "attn.head[1, 2]") & (frame.target == "self")]
    assert row.attention.item() == labels.score("self")[1, 2]
    assert row.label.item() == ("self" in labels.of(1, 2))
    assert "<script" not in labels._repr_html_()
    assert labels.title() in repr(labels)
    assert sorted(path.name for path in labels.save(tmp_path / "out").iterdir()) == ["arrays.safetensors", "meta.json"]


@pytest.fixture(scope="module", name="gemma")
def fixture_gemma():
    return gemma()


@pytest.mark.gemma
def test_gemma_has_induction_heads(gemma):
    """On repeated random tokens: clear induction, duplicate and previous-token heads, far above chance."""
    labels = label_heads(gemma, Repeated(n=4))
    assert {str(head) for head in labels.heads("induction")} >= {"attn.head[5, 1]", "attn.head[11, 2]"}
    assert "attn.head[3, 3]" in {str(head) for head in labels.heads("duplicate token")}
    assert "attn.head[2, 3]" in {str(head) for head in labels.heads("previous token")}
    assert labels.score("induction")[5, 1] > 20 * labels.chance[TARGETS.index("induction"), 5, 1]


@pytest.mark.gemma
def test_gemma_looks_at_the_answer(gemma):
    """On IOI, the last token's head 12.1 attends to the indirect object more than to the subject."""
    from crosspatch.lenses import attention
    from crosspatch.tasks import ioi

    view = attention(gemma, ioi(gemma, 8), "attn.head[12, 1]")
    mean, (end, io, subject) = view.mean()[0], (view.shared.index(name) for name in ("end", "IO", "S1"))
    assert mean[end, io] > 1.5 * mean[end, subject]
    assert mean[end, io] > 0.25
