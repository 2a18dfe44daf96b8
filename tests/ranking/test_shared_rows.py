"""Prompts that begin alike in one row, as a GPU reads them, say what each says alone."""

from dataclasses import replace

import pytest
import torch
from test_packed_prompts import READ, moved, said
from tiny import examples, model, processor

from llamarec_lkg.ranking.shared_rows import SharedRows


WIDE = 10_000  # layers of that size compute what rows' attention costs almost for nothing


def tokens_read(rows, width, hidden_size):
    """The work of layers so wide that attention costs nothing beside."""
    return rows * width


def prompts_of(*prompts):
    """Left-padded tokens, and which of them are real."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts])
    return ids, torch.tensor([[False] * (width - len(one)) + [True] * len(one) for one in prompts])


@pytest.mark.parametrize("gate", ["attention_bias", "straight_through", None])
@pytest.mark.parametrize("settings", READ, ids=["isolated", "causal", "letters"])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_scores_and_gradients_are_those_of_padded_prompts(monkeypatch, film_dataset, settings, gate, checkpoints):
    monkeypatch.setattr("llamarec_lkg.ranking.shared_rows._work", tokens_read)
    monkeypatch.setattr("llamarec_lkg.ranking.shared_rows.MASKS", 10)
    proc = processor(film_dataset, **settings).fit(examples(film_dataset))
    gated = {"use_path_gate": False} if gate is None else {"path_gate": gate}
    ranker = moved(model(proc, **gated))
    if checkpoints:
        ranker.activation_checkpointing_enable()
        ranker.language_model.train()
    one, other = examples(film_dataset, count=2)
    earlier = replace(one, history=one.history[:-1], ratings=one.ratings[:-1], candidates=one.candidates[::-1])
    batch = proc([earlier, other, one, replace(one, label=0), replace(other, candidates=other.candidates[::-1])])
    shapes = []
    ranker.get_input_embeddings().register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    (scores, gradients), (padded, expected) = said(ranker, batch, "shared rows"), said(ranker, batch, "padded")
    passes = len(shapes) // 2  # of letters, one for their prior, too
    assert shapes[0].numel() < shapes[passes].numel()
    torch.testing.assert_close(scores, padded, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


def test_rows_are_as_long_as_the_longest_set_and_hold_what_is_shared_once():
    begin = list(range(10, 20))
    ids, real = prompts_of([*begin, 1, 2], [7, 8, 9], [*begin, 3], [5, 6], [*begin, 1, 4])
    alike = torch.tensor([10, 3, 10, 2, 11])  # more than its prompt has but for the last token is taken as that
    rows = SharedRows.of(ids, real, alike, WIDE)
    nothing = [-1] * 10
    assert rows.of_tokens(ids, -1).tolist() == [[*begin, 1, 1, 2, 3, 4], [*nothing, 7, 8, 5, 9, 6]]
    assert rows.ends == 3
    for prompt, tokens in enumerate(ids):
        kept = real[prompt]
        found = rows.of_tokens(ids).flatten()[rows.places[prompt, kept]]
        assert torch.equal(found, tokens[kept]) and (rows.places[prompt, ~kept] == -1).all()
    last = rows.of_tokens(ids)[:, -rows.ends :, None]
    assert rows.at_ends(last).flatten().tolist() == ids[:, -1].tolist()


def test_a_token_sees_of_its_row_what_it_sees_of_its_prompt():
    begin = list(range(10, 20))
    ids, real = prompts_of([*begin, 1, 2, 3], [*begin, 4, 5], [7, 8])
    owner = torch.tensor([[*[0] * 10, 1, 1, 2], [-1, *[0] * 10, 1, 2], [*[-1] * 11, 0, 1]])
    rows = SharedRows.of(ids, real, (owner == 0).sum(1), WIDE)
    tokens, seen = rows.of_tokens(ids), rows.seen(owner)[:, 0]

    def sees(token):
        row, place = (int(found) for found in torch.nonzero(tokens == token)[0])
        return tokens[row, seen[row, place]].tolist()

    assert sees(12) == [10, 11, 12]
    assert (sees(2), sees(3)) == ([*begin, 1, 2], [*begin, 3])
    assert (sees(4), sees(5)) == ([*begin, 4], [*begin, 5])
    assert (sees(7), sees(8)) == ([7], [7, 8])
    nothing = rows.tokens < 0
    assert nothing.any() and (seen[nothing].sum(-1) == 1).all(), "padding sees itself, or softmax has nothing"


@pytest.mark.parametrize("hidden_size, shares", [(1, False), (WIDE, True)])
def test_a_row_is_shared_where_that_is_less_work(hidden_size, shares):
    begin = list(range(10, 20))
    ids, real = prompts_of(*([*begin, *range(10 * n, 10 * n + 6)] for n in range(2, 8)))
    rows = SharedRows.of(ids, real, torch.full((6,), 10), hidden_size)
    assert (rows is not None) == shares
    assert SharedRows.of(ids, real, torch.full((6,), 1), WIDE) is None, "an instruction alone is not shared"


def test_sets_and_masks_do_not_grow_with_how_many_begin_alike(monkeypatch):
    begin = list(range(10, 22))
    ids, real = prompts_of(*([*begin, *range(1000 + 8 * n, 1008 + 8 * n)] for n in range(64)))
    rows = SharedRows.of(ids, real, torch.full((64,), 12), WIDE)
    assert rows.tokens.shape == (8, 12 + 8 * 8), "rows of sixteen would have more than twice the mask"
    monkeypatch.setattr("llamarec_lkg.ranking.shared_rows.MASKS", 10)
    rows = SharedRows.of(ids, real, torch.full((64,), 12), WIDE)
    assert rows.tokens.shape == (4, 12 + 16 * 8), "more share, but no row holds all"
    assert SharedRows.of(ids, real & (torch.arange(64) > 0)[:, None], torch.full((64,), 12), WIDE) is None, "no prompt"


def test_rows_are_for_gpus_and_compiled_layers(film_dataset, monkeypatch):
    monkeypatch.setattr("llamarec_lkg.ranking.shared_rows._work", tokens_read)
    proc = processor(film_dataset, readout="letters").fit(examples(film_dataset))
    ranker, batch, read = moved(model(proc, use_path_gate=False)), proc([examples(film_dataset)[0]] * 4), []
    assert [ranker._layout(torch.device(name)) for name in ("cpu", "cuda")] == ["packed", "shared rows"]
    expected = ranker.score(batch)
    ranker.compile(backend="eager")
    assert ranker._layout(ranker.device) == "shared rows"
    ranker.get_input_embeddings().register_forward_pre_hook(lambda module, args: read.append(len(args[0])))
    torch.testing.assert_close(ranker.score(batch), expected, rtol=1e-4, atol=1e-4)
    assert read[0] == 1
