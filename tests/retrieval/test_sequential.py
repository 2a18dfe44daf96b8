"""What every neural retriever does, whichever its encoder: both are held to it."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny import entities_of
from transformers import AutoConfig, AutoModel

import llamarec_lkg
from llamarec_lkg.data.sequences import TEST, UNUSED
from llamarec_lkg.hub.layout import RETRIEVER_FOLDER
from llamarec_lkg.retrieval import training
from llamarec_lkg.retrieval.base import pad_left, retriever_ranks
from llamarec_lkg.retrieval.item_features import ItemFeatures
from llamarec_lkg.retrieval.modeling_lrurec import LRURecForRetrieval, LRURecRetriever
from llamarec_lkg.retrieval.modeling_sasrec import SASRecForRetrieval
from llamarec_lkg.retrieval.sequential import NeuralRetriever
from llamarec_lkg.retrieval.text_vectors import read_texts, with_padding_row
from llamarec_lkg.retrieval.training import RetrieverTrainingArguments, train_retriever
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.fingerprints import catalogue_fingerprint


KINDS = ["lrurec", "sasrec"]
ITEMS, GENRES = 40, 4


def arguments(kind, **changes) -> RetrieverTrainingArguments:
    settings = {"model_type": kind, "hidden_size": 16, "num_hidden_layers": 1, "dropout": 0.0, "batch_size": 32}
    settings |= {"learning_rate": 0.02, "max_steps": 4, "eval_steps": 4, "num_attention_heads": 2}
    return RetrieverTrainingArguments(**settings | changes)


def genre(items):
    return (np.asarray(items) - 1) % GENRES


@pytest.fixture(scope="module")
def genre_dataset(make_dataset):
    """A checkerboard: every user stays in one genre, and takes its items in any order."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(160):
        own = np.arange(1, ITEMS + 1)[genre(np.arange(1, ITEMS + 1)) == user % GENRES]
        rows += [(user, int(item), time) for time, item in enumerate(generator.permutation(own)[:7])]
    return make_dataset(rows)


@pytest.fixture(scope="module")
def genre_features():
    """Text that says the genre, and noise; entities that say it, too."""
    generator = np.random.default_rng(1)
    text = generator.normal(size=(ITEMS, 8)).astype(np.float32)
    text[:, :GENRES] = 2 * np.eye(GENRES)[genre(np.arange(1, ITEMS + 1))]
    return ItemFeatures(with_padding_row(text), entities_of([[int(g)] for g in genre(np.arange(1, ITEMS + 1))]))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=["ids", "text+entities"])
def model(request, kind):
    return nine_items(kind, request.param)


@pytest.fixture
def rich_model(kind):
    return nine_items(kind, "text+entities")


def nine_items(kind, parts):
    """The ninth is one without an interaction; in evaluation mode."""
    torch.manual_seed(0)
    config_class, model_class = training.MODELS[kind]
    sizes = {"num_items": 9, "hidden_size": 8, "max_length": 12}
    if parts == "ids":
        return as_if_trained(model_class(config_class(**sizes)))
    text = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    features = ItemFeatures(with_padding_row(text), entities_of([[0], [0, 1], [], [2], [2], [1], [], [0], [2]]))
    config = config_class(**sizes, text_size=5, num_entities=3, num_entity_links=8)
    model = as_if_trained(model_class(config))
    model.load_features(features, np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 0], dtype=bool))
    return model


@torch.no_grad()
def as_if_trained(model):
    """Weights so large that each of them matters."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(std=0.5)
            if module.bias is not None:
                module.bias.normal_(std=0.1)
    model.item_bias.normal_()
    return model.eval()


# -- the model --------------------------------------------------------------------------------------------------------


def test_left_padding_does_not_change_scores(model):
    histories = [[3], [5, 2, 7], [1, 2, 3, 4, 5, 6, 7]]
    together = model(pad_left([np.array(history) for history in histories], 12)).logits
    for row, history in enumerate(histories):
        alone = model(torch.tensor([history])).logits
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
        for padding in (1, 9, 30):
            padded = model(torch.tensor([[0] * padding + history])).logits
            torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_scores_are_finite_for_items_also_without_a_history_and_never_choose_padding(model):
    logits = model(torch.tensor([[0, 3, 5], [1, 2, 9], [0, 0, 0]])).logits
    assert logits.shape == (3, 10) and logits.dtype == torch.float32
    assert (logits[:, 0] == -torch.inf).all() and torch.isfinite(logits[:, 1:]).all()


def test_the_order_matters_and_no_position_sees_a_later_item(model):
    one, other = model(torch.tensor([[1, 2, 3]])).logits, model(torch.tensor([[2, 1, 3]])).logits
    assert (one[:, 1:] - other[:, 1:]).abs().max() > 1e-5
    early, changed = (model.encode(torch.tensor([[0, 4, 5, *end]])) for end in ([6, 7], [1, 2]))
    torch.testing.assert_close(early[:, 1:3], changed[:, 1:3])
    assert (early[:, 3] - changed[:, 3]).abs().max() > 1e-3


def test_padding_in_a_batch_changes_neither_loss_nor_gradients(model):
    items, labels = torch.tensor([[3, 5, 1]]), torch.tensor([[5, 1, 2]])
    results = []
    for padding in (0, 4):
        model.zero_grad()
        empty = torch.zeros(1, padding, dtype=torch.long)
        loss = model(torch.cat([empty, items], 1), labels=torch.cat([empty, labels], 1)).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_every_parameter_learns(model):
    model.train()
    model(torch.tensor([[0, 3, 5], [1, 2, 6]]), labels=torch.tensor([[0, 5, 2], [2, 8, 4]])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert not model.item_embedding.weight.grad[0].any() and not model.item_bias.grad[0].any()


def test_an_item_that_nobody_took_has_no_id_and_is_no_negative(rich_model):
    vectors = rich_model.item_vectors()
    torch.testing.assert_close(vectors[9], rich_model.item_content()[9])
    assert not vectors[0].any()
    expected = rich_model.item_embedding.weight[1] + rich_model.item_content()[1]
    torch.testing.assert_close(vectors[1], expected)
    items, labels = torch.tensor([[0, 3], [3, 5]]), torch.tensor([[0, 5], [5, 2]])
    rich_model.train().zero_grad()
    rich_model(items, labels=labels).loss.backward()
    grads = rich_model.item_bias.grad, rich_model.item_embedding.weight.grad
    assert not any(grad[9].any() for grad in grads) and all(grad[8].any() for grad in grads)


def test_text_and_entities_of_an_item_are_projected_and_averaged(rich_model):
    content = rich_model.item_content
    projected = 0.3 * content.text @ content.text_projection.weight.T
    torch.testing.assert_close(content()[2], projected[2] + content.entity_embedding.weight[:2].mean(0))
    torch.testing.assert_close(content()[3], projected[3])


def test_the_parts_of_a_vector_start_equally_large(kind):
    torch.manual_seed(0)
    config_class, model_class = training.MODELS[kind]
    for scale in (1.0, 0.1):
        sizes = {"num_items": 300, "text_size": 50, "num_entities": 200, "num_entity_links": 300}
        model = model_class(config_class(**sizes, text_scale=scale))
        text = np.random.default_rng(0).normal(size=(300, 50)).astype(np.float32)
        features = ItemFeatures(with_padding_row(text), entities_of([[row % 200] for row in range(300)]))
        model.load_features(features, np.ones(301, dtype=bool))
        content = model.item_content
        ids, entities = model.item_embedding.weight[1:].std(), content.entity_embedding.weight.std()
        projected = scale * content.text_projection(content.text[1:]).std()
        assert projected.item() == pytest.approx(0.02, rel=0.1)
        assert entities.item() == pytest.approx(0.02, rel=0.1) and 0.015 < ids < 0.02


def test_a_model_comes_back_from_disk_exactly(model, kind, tmp_path):
    model.save_pretrained(tmp_path / RETRIEVER_FOLDER)
    items = torch.tensor([[0, 3, 5], [1, 2, 9]])
    found = [
        AutoModel.from_pretrained(tmp_path / RETRIEVER_FOLDER),
        NeuralRetriever.from_pretrained(str(tmp_path / RETRIEVER_FOLDER)).model,
        NeuralRetriever.from_repository(str(tmp_path), {}).model,
    ]
    for loaded in found:
        assert type(loaded) is type(model) and not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
        assert torch.equal(loaded(items).logits, model(items).logits)
    assert AutoConfig.from_pretrained(tmp_path / RETRIEVER_FOLDER).model_type == kind


def test_a_folder_without_a_retriever_is_told(film_dataset, tmp_path):
    assert NeuralRetriever.from_repository(str(tmp_path), {}) is None
    tiny.backbone().save_pretrained(tmp_path)
    with pytest.raises(LKGError, match="a model of type 'llama', which is no retriever"):
        NeuralRetriever.from_pretrained(str(tmp_path))


def test_scores_at_the_border_are_those_of_the_model(model):
    histories = [np.array([3, 5]), np.array([], dtype=int), np.array([9, 1, 2])]
    scores = NeuralRetriever(model, batch_size=2).score(histories)
    assert scores.dtype == np.float32 and (scores[:, 0] == -np.inf).all()
    for row, history in enumerate(histories):
        alone = model(torch.tensor([history.tolist() or [0]])).logits[0].detach().numpy()
        assert scores[row] == pytest.approx(alone, rel=1e-4, abs=1e-5)


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_planted_order_is_learned(cycle_dataset, kind):
    model, log = train_retriever(cycle_dataset, arguments(kind, max_steps=150, eval_steps=150), progress=False)
    assert type(model) is training.MODELS[kind][1] and model.config.catalogue
    assert (retriever_ranks(cycle_dataset, NeuralRetriever(model), "test") == 1).mean() > 0.9, log


@pytest.mark.parametrize("parts", ["text", "entities"])
def test_an_item_without_an_interaction_is_found_by_what_is_known_of_it(genre_dataset, genre_features, kind, parts):
    hidden = np.zeros(ITEMS + 1, dtype=bool)
    hidden[np.random.default_rng(1).choice(ITEMS, size=ITEMS // 10, replace=False) + 1] = True
    out = hidden[genre_dataset.item_sequence] & (genre_dataset.labels != TEST)
    data = replace(genre_dataset, labels=np.where(out, UNUSED, genre_dataset.labels).astype(np.int8))
    features = replace(genre_features, **{"entities" if parts == "text" else "text": None})
    settings = arguments(kind, max_steps=120, eval_steps=120, text_scale=1.0)
    model, _ = train_retriever(data, settings, features=features, progress=False)
    ids, _ = train_retriever(data, settings, progress=False)
    items = np.flatnonzero(hidden)
    histories = [
        np.array([other for other in range(1, ITEMS + 1) if genre(other) == genre(item) and not hidden[other]])[:4]
        for item in items
    ]
    found = NeuralRetriever(model).score(histories)
    blind = NeuralRetriever(ids).score(histories)
    for row, item in enumerate(items):
        foreign = genre(np.arange(1, ITEMS + 1)) != genre(item)
        assert found[row, item] > np.quantile(found[row, 1:][foreign], 0.9)
    assert any(blind[row, item] < np.median(blind[row, 1:]) for row, item in enumerate(items))


def test_only_items_with_features_are_told_from_those_that_nobody_took(genre_dataset, genre_features, kind):
    settings = arguments(kind)
    model, _ = train_retriever(genre_dataset, settings, features=genre_features, progress=False)
    assert model.id_share.tolist() == (genre_dataset.training_counts() > 0).tolist()
    alone, _ = train_retriever(genre_dataset, settings, progress=False)
    assert alone.id_share is None and alone.item_content is None


def test_features_must_be_given_and_fit(genre_dataset, genre_features, cycle_dataset):
    with pytest.raises(LKGError, match="item_vectors is 'text', but no features are given"):
        train_retriever(genre_dataset, arguments("lrurec", item_vectors="text"), progress=False)
    with pytest.raises(LKGError, match="features are those of 40 items, the data have 30"):
        train_retriever(cycle_dataset, arguments("lrurec"), features=genre_features, progress=False)
    with pytest.raises(LKGError, match="model_type is 'gru'; it is 'lrurec' or 'sasrec'"):
        train_retriever(cycle_dataset, arguments("gru"), progress=False)
    with pytest.raises(LKGError, match="item_vectors is 'words'; it is one of 'ids', 'text'"):
        train_retriever(cycle_dataset, arguments("lrurec", item_vectors="words"), progress=False)


# -- new items --------------------------------------------------------------------------------------------------------


def test_an_item_added_later_scores_as_its_like_and_changes_no_other(rich_model):
    retriever = NeuralRetriever(rich_model)
    text = rich_model.item_content.text[9:10].numpy()
    more = retriever.add_items(
        ItemFeatures(with_padding_row(np.concatenate([text, 2 * text])), entities_of([[2], []]))
    )
    histories = [np.array([3, 5]), np.array([9, 1, 2])]
    before, after = retriever.score(histories), more.score(histories)
    assert after.shape == (2, 12) and after[:, :10] == pytest.approx(before, rel=1e-5, abs=1e-6)
    assert after[:, 10] == pytest.approx(before[:, 9], rel=1e-5, abs=1e-6), "the ninth item, once more"
    assert np.isfinite(after[:, 11]).all() and retriever.num_items == 9 and more.num_items == 11
    again = more.score([np.array([3, 10])])
    assert again == pytest.approx(more.score([np.array([3, 9])]), rel=1e-5, abs=1e-6), "and it can be in a history"


def test_the_extended_catalogue_is_saved_and_named(rich_model, tmp_path):
    features = ItemFeatures(with_padding_row(np.ones((1, 5), dtype=np.float32)))
    ids = [f"item {number}" for number in range(10)]
    retriever = NeuralRetriever(rich_model).add_items(features, ids)
    assert retriever.catalogue == catalogue_fingerprint(ids) and rich_model.config.catalogue is None
    retriever.model.save_pretrained(tmp_path)
    histories = [np.array([3, 10])]
    assert np.array_equal(NeuralRetriever.from_pretrained(str(tmp_path)).score(histories), retriever.score(histories))


def test_new_items_need_features_that_fit(rich_model):
    with pytest.raises(LKGError, match="knows items by their ids alone"):
        NeuralRetriever(nine_items("lrurec", "ids")).add_items(ItemFeatures(np.zeros((2, 5), dtype=np.float32)))
    retriever = NeuralRetriever(rich_model)
    with pytest.raises(LKGError, match="text vectors of width 4, the retriever's items 5"):
        retriever.add_items(ItemFeatures(np.zeros((2, 4), dtype=np.float32)))
    with pytest.raises(LKGError, match="has entity 3, the retriever knows 3 entities"):
        retriever.add_items(ItemFeatures(np.zeros((2, 5), dtype=np.float32), entities_of([[3]])))
    with pytest.raises(LKGError, match="without their projection"):
        retriever.read_items(["a text"], (None, None))


def test_texts_of_new_items_are_read_as_the_others_were(cycle_dataset, kind, tmp_path):
    backbone = tiny.tokenizer(), tiny.backbone()
    texts = [f"item number {item}" for item in range(1, 31)]
    vectors, projection = read_texts(texts, backbone, layers=1, size=6, name="owner/tiny", progress=False)
    features = ItemFeatures(with_padding_row(vectors), projection=projection)
    trained, _ = train_retriever(cycle_dataset, arguments(kind), features=features, progress=False)
    assert (trained.config.text_backbone, trained.config.text_layers) == ("owner/tiny", 1)
    trained.save_pretrained(tmp_path)
    retriever = NeuralRetriever.from_pretrained(str(tmp_path))
    new = retriever.read_items(texts[4:6], backbone, progress=False)
    assert new.text[1:] == pytest.approx(vectors[4:6], rel=1e-4, abs=1e-4)
    assert retriever.add_items(new).num_items == 32
    with pytest.raises(LKGError, match="states are 16 wide, those the retriever was trained on 32. Give owner/tiny"):
        retriever.read_items(texts[:1], (backbone[0], tiny.backbone(hidden_size=16)), progress=False)


def test_names_from_before_there_were_two_still_work():
    assert training.LRURecTrainingArguments is RetrieverTrainingArguments
    assert training.train_lrurec is train_retriever
    assert LRURecRetriever is NeuralRetriever is llamarec_lkg.NeuralRetriever
    assert RetrieverTrainingArguments().model_type == "lrurec" and RetrieverTrainingArguments().item_vectors == "ids"
    assert llamarec_lkg.SASRecForRetrieval is SASRecForRetrieval
    assert llamarec_lkg.LRURecForRetrieval is LRURecForRetrieval


@pytest.mark.parametrize("kind", [LRURecForRetrieval, SASRecForRetrieval])
def test_gradients_are_in_full_precision_wherever_they_are_asked_for(kind):
    torch.manual_seed(0)
    model = kind(kind.config_class(num_items=9, hidden_size=16, hidden_dropout_prob=0.0))
    vectors, gradients, model = torch.randn(30, 16), [], model.train()
    for inside in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.encode_packed(vectors, [20, 10]).float().square()[:, ::2].sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            loss.backward()
        found = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
        gradients.append({key: grad for key, grad in found.items() if grad.abs().max() > 1e-3})
    assert len(gradients[0]) > 10
    for key, gradient in gradients[0].items():
        scale = gradient.abs().max()
        torch.testing.assert_close(gradients[1][key] / scale, gradient / scale, rtol=0, atol=0.05)
