"""Text vectors: what a language model's first layers see, centred and whitened, and new texts alike."""

import numpy as np
import pytest
import tiny
import torch

from llamarec_lkg.retrieval import text_vectors as module
from llamarec_lkg.retrieval.text_vectors import TextProjection, read_texts, text_states, with_padding_row
from llamarec_lkg.utils.errors import LKGError


TEXTS = [f"{word} {number}" for number in range(12) for word in ("Heat", "The Insider", "Alien: a long title")]


@pytest.fixture(scope="module")
def backbone():
    return tiny.tokenizer(), tiny.backbone()


@pytest.fixture(scope="module")
def folder(backbone, tmp_path_factory):
    target = tmp_path_factory.mktemp("backbone")
    for part in backbone:
        part.save_pretrained(target)
    return target


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_state_is_the_mean_over_the_tokens_of_one_text(kind, monkeypatch):
    tokenizer, model = tiny.tokenizer(), tiny.backbone(kind)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 50)  # several batches, most with padding
    states = text_states([*TEXTS, ""], (tokenizer, model), layers=1, progress=False)
    assert states.shape == (37, 32) and states.dtype == np.float32 and not states[-1].any()
    for row in (0, 1, 2, 35):
        ids = torch.tensor([tokenizer(TEXTS[row])["input_ids"]])
        with torch.no_grad():
            after_one = model.model.layers[0](
                model.model.embed_tokens(ids),
                position_embeddings=model.model.rotary_emb(
                    model.model.embed_tokens(ids), torch.arange(ids.shape[1])[None]
                ),
            )
            expected = model.model.norm(after_one)[0].mean(0)
        assert states[row] == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)
    assert len(model.model.layers) == 2, "the model is given back whole"


def test_only_the_beginning_of_a_long_text_is_read(backbone):
    long = text_states(["a" * 128, "a" * 128 + "b" * 50], backbone, progress=False)
    assert np.array_equal(*long)


def test_vectors_are_centred_and_white():
    generator = np.random.default_rng(0)
    states = generator.normal(size=(200, 6)) @ generator.normal(size=(6, 6)) + 5
    vectors = TextProjection.fit(states, 4, 8)(states)
    assert vectors.dtype == np.float32
    assert vectors.mean(0) == pytest.approx(np.zeros(4), abs=1e-4)
    assert vectors.T @ vectors / 200 == pytest.approx(np.eye(4), abs=1e-3)
    # the first direction is the one in which most varies
    first = TextProjection.fit(states, 1, 8).directions[:, 0]
    _, values, directions = np.linalg.svd(states - states.mean(0))
    assert abs(first @ directions[0]) == pytest.approx(200**0.5 / values[0], rel=1e-3)


def test_few_texts_leave_directions_empty():
    states = np.random.default_rng(0).normal(size=(3, 5))
    vectors = TextProjection.fit(states, 8, 1)(states)
    assert vectors.shape == (3, 8)
    assert np.isfinite(vectors).all() and (np.abs(vectors).sum(0) > 0).sum() == 2


def test_vectors_are_made_once_for_the_same_content(folder, monkeypatch):
    vectors, projection = read_texts(TEXTS, folder, layers=1, size=5, name="owner/tiny", progress=False)
    assert vectors.shape == (36, 5) and projection.backbone == "owner/tiny" and projection.layers == 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "text_states", lambda *args, **options: pytest.fail("they are in the cache"))
        again, same = read_texts(TEXTS, folder, layers=1, size=5, name="owner/tiny", progress=False)
        assert np.array_equal(again, vectors) and np.array_equal(same.directions, projection.directions)
        assert (same.layers, same.backbone) == (1, "owner/tiny")
        with pytest.raises(pytest.fail.Exception):
            read_texts(TEXTS[:-1], folder, layers=1, size=5, name="owner/tiny", progress=False)
    other, _ = read_texts(TEXTS, folder, layers=2, size=5, progress=False)
    assert not np.allclose(other, vectors)


def test_new_texts_are_projected_as_the_old_ones_were(folder):
    vectors, projection = read_texts(TEXTS, folder, layers=1, size=5, progress=False)
    states = text_states(TEXTS[::-1], folder, layers=projection.layers, progress=False)
    assert projection(states) == pytest.approx(vectors[::-1], abs=0.2)  # the type computed in may be half


def test_features_begin_with_the_padding_item_and_places_are_no_names(backbone, folder):
    vectors, _ = read_texts(TEXTS, backbone, layers=1, size=5, progress=False)
    features = with_padding_row(vectors)
    assert features.shape == (37, 5) and not features[0].any() and np.array_equal(features[1:], vectors)
    assert read_texts(TEXTS, folder, layers=1, size=5, progress=False)[1].backbone is None


def test_nothing_to_read_is_refused(backbone):
    with pytest.raises(LKGError, match="0 texts, 8 layers and 128 directions were given"):
        read_texts([], backbone)
    with pytest.raises(LKGError, match="2 texts, 0 layers"):
        read_texts(["a", "b"], backbone, layers=0)
