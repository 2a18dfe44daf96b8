"""What a push uploads and what stays at home; where it goes; and what is left when it fails."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hub_stand_in.client import use_hub
from hub_stand_in.world import (
    BACKBONE,
    RANKER,
    STAMP,
    USERS,
    logits,
    named_dataset,
    push_backbone,
    readable,
    recommender,
    uploaded,
)
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load
from tiny import backbone
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from llamarec_lkg import LKGError, LlamaRecLKGConfig, LlamaRecLKGForRanking, LlamaRecLKGProcessor, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.data.schema import RATED, Triples
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.hub.layout import MODEL_TYPE
from llamarec_lkg.hub.mixin import PUSH_OPTIONS
from llamarec_lkg.hub.public_copy import push_saved
from llamarec_lkg.hub.repository import MARK, say_who_is_in_it
from llamarec_lkg.utils.hub import matches


pytestmark = pytest.mark.hub
SHIM = "modeling_llamarec_lkg_hub.py"
MODEL = {"README.md", SHIM, "config.json", "model.safetensors", "adapter/adapter_config.json",
         "adapter/adapter_model.safetensors"}  # fmt: skip
GRAPH = {f"knowledge_graph/{name}" for name in ("graph.json", "graph.safetensors", "nodes.parquet")}
PROCESSOR = {"README.md", SHIM, "processor_config.json", "items.parquet", "users.parquet", "tokenizer.json",
             "tokenizer_config.json", *GRAPH}  # fmt: skip
RETRIEVER = {"retriever/config.json", "retriever/model.safetensors"}


@pytest.fixture
def dataset(make_dataset, film_items):
    return named_dataset(make_dataset, film_items)


@pytest.fixture
def whole(hub, dataset) -> Recommender:
    push_backbone()
    return recommender(dataset)


def titles(hub, repo_id=RANKER, **revision):
    return [commit.title for commit in hub.commits(repo_id, **revision)]


# -- what goes up -----------------------------------------------------------------------------------------------------


def test_a_model_with_an_adapter_goes_up_small_in_one_commit_and_comes_down_the_same(hub, whole, dataset):
    done = whole.model.push_to_hub(RANKER)
    files = uploaded(hub)
    assert set(files) == MODEL
    assert titles(hub) == ["Upload model with llamarec_lkg", "initial commit"]
    assert done.oid == hub.commits(RANKER)[0].oid
    assert not any(name.startswith(("language_model", "preference.user")) for name in load(files["model.safetensors"]))
    assert all("lora" in name for name in load(files["adapter/adapter_model.safetensors"]))
    config = json.loads(files["config.json"])
    assert (config["num_users"], config["users"], config["backbone_name_or_path"]) == (0, None, BACKBONE)
    assert whole.model.config.users
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == BACKBONE
    again = AutoModel.from_pretrained(RANKER)
    assert type(again) is LlamaRecLKGForRanking
    assert torch.equal(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))
    assert whole.model.preference.user_embedding is not None, "the model at hand is as it was"


def test_weights_of_single_users_go_up_when_asked_for(hub, whole, dataset):
    whole.model.push_to_hub(RANKER, include_user_embedding=True)
    again = AutoModel.from_pretrained(RANKER)
    found, wanted = (logits(model, whole.processor, dataset, known=True) for model in (again, whole.model))
    assert torch.equal(found, wanted)
    assert not torch.equal(wanted, logits(whole.model, whole.processor, dataset)), "they do make a difference"
    assert again.config.users == whole.processor.users
    assert "weights of single users" in ModelCard.load(RANKER).text


def test_a_processor_goes_up_without_people(hub, whole, dataset):
    whole.processor.push_to_hub(RANKER)
    files = uploaded(hub)
    assert set(files) == PROCESSOR and titles(hub) == ["Upload processor with llamarec_lkg", "initial commit"]
    again = AutoProcessor.from_pretrained(RANKER)
    assert type(again) is LlamaRecLKGProcessor
    assert again.user_ids == () and again.relations == whole.processor.relations
    whole.processor.check_model(whole.model.config)
    again.check_model(whole.model.config)
    column = again.relations.index(RATED)
    batch, full = (proc([proc.example(["1", "2"], ["3", "4"])]) for proc in (again, whole.processor))
    assert batch["evidence"].shape == full["evidence"].shape
    assert not batch["evidence"][..., column].any() and full["evidence"][..., column].any()
    others = [place for place in range(len(again.relations)) if place != column]
    assert torch.equal(batch["evidence"][..., others], full["evidence"][..., others])
    assert torch.equal(batch["path_input_ids"], full["path_input_ids"])


def test_nothing_about_people_is_in_any_uploaded_byte(hub, whole):
    whole.push_to_hub(RANKER)
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER
    text = readable(uploaded(hub))
    assert b"Insider, The" in text, "the search finds what is there"
    for user in USERS:
        assert user.encode() not in text and user.split("@")[0].encode() + b"@" not in text
    graph = load(uploaded(hub)["knowledge_graph/graph.safetensors"])
    assert not (graph["timestamps"] >= STAMP).any()
    assert "no data about people" in uploaded(hub)["README.md"].decode()
    again = Recommender.from_pretrained(RANKER)
    offline = Recommender.from_pretrained(RANKER, local_files_only=True)  # what was downloaded is enough
    assert offline.recommend(["1"]) == again.recommend(["1"])


@pytest.mark.parametrize("built", ["from_dataset", "from_triples"])
@pytest.mark.parametrize("interactions", [False, True])
def test_users_whom_facts_name_are_in_no_uploaded_byte_either(hub, whole, dataset, built, interactions):
    facts = pd.DataFrame(
        {"head": [USERS[0], "m.1", USERS[2]], "relation": ["TRUSTS", "SEQUEL", "KNOWS"],
         "tail": [USERS[1], "m.2", "m.9"]}
    )  # fmt: skip
    triples = Triples.from_frame(facts, {"m.1": "1", "m.2": "2"})
    if built == "from_dataset":
        graph = KnowledgeGraph.from_dataset(dataset, triples)
    else:
        graph = KnowledgeGraph.from_triples(triples, dataset.items.ids)
    items = dataset.items
    proc = LlamaRecLKGProcessor(whole.processor.tokenizer, graph, items.ids, items.titles, dataset.user_ids)
    proc.push_to_hub(RANKER, include_interactions=interactions)
    text = readable(uploaded(hub))
    assert b"m.9" in text
    assert not any(user.encode() in text for user in USERS)


def test_an_item_that_is_named_like_a_user_is_no_person(make_dataset, film_items):
    rows = [(str(user), (user + step) % 6 + 1, STAMP + step) for user in range(1, 5) for step in range(5)]
    facts = pd.DataFrame({"head": ["1", "3", "m.1"], "relation": ["LIKE"] * 3, "tail": ["2", "4", "3"]})
    triples = Triples.from_frame(facts, {"1": "1", "2": "2", "4": "gone"})  # a link to a dropped item is a link, too
    public = KnowledgeGraph.from_dataset(make_dataset(rows, film_items), triples).without_people()
    code = 2 * public.relations.index("LIKE")
    edges = np.flatnonzero(public.edge_relations == code)
    assert [str(public.node_keys[public.edge_sources()[edge]]) for edge in edges] == ["1"]
    assert "4" in public.node_keys[public.node_types == public.entity_types.index("entity")]


def test_a_title_that_is_a_user_is_found_before_anything_goes_up(hub, whole):
    proc = whole.processor
    proc.titles = (USERS[0], *proc.titles[1:])
    with pytest.raises(LKGError, match=f"names 1 of the known users in its column 'title', '{USERS[0]}'"):
        proc.push_to_hub(RANKER)
    assert not HfApi().repo_exists(RANKER)
    proc.push_to_hub(RANKER, include_users=True)
    assert LlamaRecLKGProcessor.from_pretrained(RANKER).titles[0] == USERS[0]


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("interactions", [False, True])
def test_people_go_up_only_as_far_as_asked_for(hub, whole, dataset, users, interactions):
    whole.push_to_hub(RANKER, include_users=users, include_interactions=interactions)
    text = readable(uploaded(hub))
    assert all((user.encode() in text) is users for user in USERS)
    assert ((load(uploaded(hub)["knowledge_graph/graph.safetensors"])["timestamps"] >= STAMP).any()) == interactions
    again = Recommender.from_pretrained(RANKER)
    assert again.processor.user_ids == (tuple(USERS) if users else ())
    assert (again.model.preference.user_embedding is not None) is users
    if interactions:  # an unknown user is read from a graph that knows as much, under whatever names
        found, wanted = (logits(again.model, proc, dataset) for proc in (again.processor, whole.processor))
        assert torch.allclose(found, wanted, atol=1e-6)
    if users and interactions:
        for user in USERS:
            for found, wanted in zip(
                again.recommend(["1", "4"], user=user), whole.recommend(["1", "4"], user=user), strict=True
            ):
                assert found.retrieval_score == pytest.approx(wanted.retrieval_score)
                rounded = {"retrieval_score": 0, "score": 0, "reasons": [], "relations": {}}
                assert replace(found, **rounded) == replace(wanted, **rounded)
                assert found.score == pytest.approx(wanted.score)
                shares = [{str(reason.text): reason.share for reason in item.reasons} for item in (found, wanted)]
                assert shares[0] == pytest.approx(shares[1], abs=1e-5)


def test_a_model_without_adapter_goes_up_whole_and_a_merged_one_too(hub, whole, dataset):
    whole.model.merge_adapter().push_to_hub(RANKER)
    assert set(uploaded(hub)) == {"README.md", SHIM, "config.json", "model.safetensors"}
    names = set(load(uploaded(hub)["model.safetensors"]))
    assert any(name.startswith("language_model.") for name in names)
    assert not any(name.startswith("preference.user") for name in names)
    again = AutoModel.from_pretrained(RANKER)
    assert torch.equal(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))


def test_shards_lose_the_weights_of_users_too(hub, whole, dataset):
    whole.model.merge_adapter().push_to_hub(RANKER, max_shard_size="40KB")
    files = uploaded(hub)
    shards = [name for name in files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    assert len(shards) > 2 and "model.safetensors" not in files
    index = json.loads(files["model.safetensors.index.json"])["weight_map"]
    assert index.keys() == {name for shard in shards for name in load(files[shard])}
    assert not any("preference.user" in name for name in index)
    again = AutoModel.from_pretrained(RANKER)
    assert torch.equal(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))


def test_saving_with_push_to_hub_is_saving_and_pushing(hub, whole, tmp_path):
    whole.model.save_pretrained(tmp_path / "ranker", push_to_hub=True)
    whole.processor.save_pretrained(tmp_path / "ranker", push_to_hub=True, private=True, repo_id="tester/processor")
    assert set(uploaded(hub)) == MODEL and "private" not in (tmp_path / "ranker" / "config.json").read_text()
    assert set(uploaded(hub, "tester/processor")) == PROCESSOR and hub.repository("tester/processor").private
    local = LlamaRecLKGForRanking.from_pretrained(tmp_path / "ranker")
    assert local.preference.user_embedding is not None, "what is saved here is whole"
    assert LlamaRecLKGProcessor.from_pretrained(tmp_path / "ranker").user_ids == tuple(USERS)
    merged = whole.model.merge_adapter()
    merged.save_pretrained(tmp_path / "whole", push_to_hub=True)
    assert set(uploaded(hub, "tester/whole")) == {"README.md", SHIM, "config.json", "model.safetensors"}
    assert "preference.user_embedding.weight" not in load(uploaded(hub, "tester/whole")["model.safetensors"])


def test_what_an_older_push_left_goes_and_what_is_not_ours_stays(hub, whole):
    whole.push_to_hub(RANKER, include_users=True, include_interactions=True)
    api = HfApi()
    for path in ("LICENSE", "adapter_config.json", "adapter_model.safetensors", "notes/adapter.txt"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=path, repo_id=RANKER)
    whole.model.merge_adapter().push_to_hub(RANKER)
    assert set(uploaded(hub)) == (MODEL | PROCESSOR | RETRIEVER | {"LICENSE", "notes/adapter.txt"}) - {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    whole.processor.push_to_hub(RANKER)
    assert not any(user.encode() in readable(uploaded(hub)) for user in USERS)


def test_a_part_that_is_not_pushed_stays(hub, whole):
    whole.push_to_hub(RANKER)
    Recommender(whole.model, whole.processor).push_to_hub(RANKER)
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER
    assert Recommender.from_pretrained(RANKER).recommend(["1"], k=2)
    Recommender(whole.model, whole.processor).push_to_hub(RANKER, remove_retriever=True)
    assert set(uploaded(hub)) == MODEL | PROCESSOR
    assert "candidates=" in ModelCard.load(RANKER).text, "the snippet does without"
    whole.push_to_hub(RANKER, remove_retriever=True)  # one that is pushed is not removed
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER


def test_a_retriever_of_other_items_does_not_stay_beside_a_new_processor(hub, whole, tmp_path, capsys):
    whole.retriever.model.config.catalogue = whole.processor.catalogue
    whole.push_to_hub(RANKER)
    proc = whole.processor
    ids = tuple(f"other {raw}" for raw in proc.item_ids)
    graph = replace(proc.knowledge_graph, node_keys=proc.knowledge_graph.node_keys.astype(object).copy())
    graph.node_keys[graph.item_nodes[1:]] = ids
    other = LlamaRecLKGProcessor(proc.tokenizer, graph, ids, proc.titles, **proc.settings)
    before = len(hub.commits(RANKER))
    with pytest.raises(LKGError, match="trained to find other items than the 6 .*`remove_retriever=True`"):
        other.push_to_hub(RANKER)
    assert len(hub.commits(RANKER)) == before
    other.save_pretrained(tmp_path / "other")
    command = ["push", str(tmp_path / "other"), "tester/shell"]
    whole.push_to_hub("tester/shell")
    assert main(command) == 1 and "--remove-retriever" in capsys.readouterr().err
    assert main([*command, "--remove-retriever"]) == 0 and not RETRIEVER & set(uploaded(hub, "tester/shell"))
    other.push_to_hub(RANKER, remove_retriever=True)
    assert not RETRIEVER & set(uploaded(hub))


def test_a_gitignore_that_would_leave_out_part_of_a_push_is_told(hub, whole):
    api = HfApi()
    api.create_repo(RANKER)
    api.upload_file(path_or_fileobj=b"# old\ncheckpoint-*/\n", path_in_repo=".gitignore", repo_id=RANKER)
    whole.push_to_hub(RANKER)  # what older trainers wrote does no harm
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER | {".gitignore"}
    api.upload_file(path_or_fileobj=b"*.parquet\n!users.parquet", path_in_repo=".gitignore", repo_id=RANKER)
    with pytest.raises(LKGError, match=r"would leave out \['items.parquet', 'knowledge_graph/nodes.parquet', 'use"):
        whole.push_to_hub(RANKER)
    whole.model.push_to_hub(RANKER)


def test_a_card_that_is_there_stays_and_a_new_one_is_valid_and_runs(hub, whole, capsys):
    for repo_id, push in (
        (RANKER, whole.push_to_hub),
        ("tester/model", whole.model.push_to_hub),
        ("tester/processor", whole.processor.push_to_hub),
        ("tester/two", Recommender(whole.model, whole.processor).push_to_hub),
    ):
        push(repo_id, tags=["films"])
        card = ModelCard.load(repo_id)
        card.validate()
        assert "films" in card.data.tags and card.data.library_name == "llamarec_lkg"
        assert card.data.to_dict().get("base_model") == (None if repo_id == "tester/processor" else BACKBONE)
        (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        assert len([line for line in snippet.splitlines() if line]) == 3
        exec(snippet, {})
    assert "Recommendation(" in capsys.readouterr().out
    HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\nMine", path_in_repo="README.md", repo_id=RANKER)
    whole.push_to_hub(RANKER)
    assert uploaded(hub)["README.md"].endswith(b"Mine")
    hub.fail("HEAD */README.md", "429", times=None)
    with pytest.raises(LKGError, match="could not be asked for its card"):
        whole.push_to_hub(RANKER)


def test_a_card_says_of_people_what_is_true(hub, whole):
    def section():
        head, found, text = uploaded(hub)["README.md"].decode().partition("\n## Data about people\n\n")
        assert found and "## Data about people" not in text
        return text

    whole.push_to_hub(RANKER)
    assert section().startswith("There is no data about people")
    whole.processor.push_to_hub(RANKER, include_users=True, include_interactions=True)
    assert "user ids, who rated what, and when" in section()
    whole.model.push_to_hub(RANKER)
    assert "user ids" in section(), "the processor's are still there"
    whole.push_to_hub(RANKER, include_users=True)
    assert "data about people: user ids, weights of single users." in section()
    whole.push_to_hub(RANKER)
    assert section().startswith("There is no data about people")


def test_a_card_remembers_what_another_part_holds(hub, whole):
    whole.model.push_to_hub(RANKER, include_user_embedding=True)
    whole.processor.push_to_hub(RANKER, include_interactions=True, include_user_embedding=True)
    text = uploaded(hub)["README.md"].decode()
    assert "about people: who rated what, and when, weights of single users." in text
    whole.model.push_to_hub(RANKER)
    assert "about people: who rated what, and when." in uploaded(hub)["README.md"].decode()
    whole.processor.push_to_hub("tester/processor", include_interactions=True, include_user_embedding=True)
    assert (
        "weights" not in uploaded(hub, "tester/processor")["README.md"].decode().partition("## Data about people")[2]
    )


def test_a_card_does_not_deny_people_of_whom_it_does_not_know(hub, whole):
    def section(repo_id):
        return uploaded(hub, repo_id)["README.md"].decode().partition("## Data about people\n\n")[2]

    for repo_id, options in ((RANKER, {}), ("tester/weights", {"include_user_embedding": True})):
        whole.processor.push_to_hub(repo_id, include_users=True)
        HfApi().delete_file("README.md", repo_id)
        whole.model.push_to_hub(repo_id, **options)
        assert "not known" in section(repo_id) and "no data about people" not in section(repo_id)
        assert ("weights of single users" in section(repo_id)) == bool(options)
        whole.model.push_to_hub(repo_id)
        assert "not known" in section(repo_id) and "no data about people" not in section(repo_id)
        whole.push_to_hub(repo_id)
        assert section(repo_id).startswith("There is no data about people")


def test_a_model_that_knows_nobody_has_no_weights_of_users_to_share(hub, whole):
    LlamaRecLKGForRanking(whole.processor.model_config(num_users=0, use_language_model=False)).push_to_hub(
        RANKER, include_user_embedding=True
    )
    assert "no data about people" in uploaded(hub)["README.md"].decode()


def test_a_new_branch_keeps_the_card_it_begins_with(hub, whole):
    whole.push_to_hub(RANKER)
    HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\nMine", path_in_repo="README.md", repo_id=RANKER)
    whole.push_to_hub(RANKER, revision="v2")
    assert uploaded(hub, revision="v2")["README.md"].endswith(b"Mine")


def test_an_adapter_of_somebody_else_is_not_deleted(hub, whole):
    api = HfApi()
    api.create_repo(RANKER)
    for path in ("adapter_config.json", "adapter_model.safetensors", "config.json"):
        api.upload_file(path_or_fileobj=b'{"model_type": "llama"}', path_in_repo=path, repo_id=RANKER)
    whole.processor.push_to_hub(RANKER)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(uploaded(hub))
    before = len(hub.commits(RANKER))
    for push in (whole.model.push_to_hub, whole.push_to_hub):
        with pytest.raises(LKGError, match=r"adapter_model.safetensors'\] at its root and no ranker"):
            push(RANKER)
    assert len(hub.commits(RANKER)) == before


def test_a_card_that_a_push_wrote_follows_what_the_repository_holds(hub, whole):
    def card():
        return ModelCard.load(RANKER)

    whole.processor.push_to_hub(RANKER, tags=["films"])
    assert "The processor of a recommendation ranker" in card().text and card().data.pipeline_tag is None
    whole.model.push_to_hub(RANKER)
    assert "A recommendation ranker: a causal language model" in card().text
    assert (card().data.base_model, card().data.pipeline_tag) == (BACKBONE, "text-ranking")
    assert "Recommender.from_pretrained" in card().text and "candidates=" in card().text
    assert f"backbone `{BACKBONE}` is loaded by its name" in card().text
    whole.processor.push_to_hub(RANKER)
    assert (card().data.base_model, card().data.pipeline_tag) == (BACKBONE, "text-ranking"), "the model is still there"
    whole.push_to_hub(RANKER, tags=["old"])
    assert "candidates=" not in card().text, "there is a retriever now"
    metadata = card()
    metadata.data.license = "mit"  # as the Hub's own page lets one edit it
    metadata.push_to_hub(RANKER)
    whole.model.merge_adapter().push_to_hub(RANKER)
    assert "is loaded by its name" not in card().text and "candidates=" not in card().text
    assert card().data.license == "mit" and {"films", "old", "knowledge-graph"} <= set(card().data.tags)
    assert len(card().data.tags) == 5, "each once"
    card().validate()
    text = str(card()).replace(MARK, "Mine.")
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=RANKER)
    whole.processor.push_to_hub(RANKER)
    assert str(card()) == text


def test_a_ranker_of_somebody_else_is_none(hub, whole):
    HfApi().create_repo(RANKER)
    HfApi().upload_file(path_or_fileobj=b'{"model_type": "llama"}', path_in_repo="config.json", repo_id=RANKER)
    whole.processor.push_to_hub(RANKER)
    assert ModelCard.load(RANKER).data.pipeline_tag is None
    assert MODEL_TYPE == LlamaRecLKGConfig.model_type == json.loads(whole.model.config.to_json_string())["model_type"]


def test_a_card_of_ones_own_says_who_is_in_it_and_nothing_else(hub, whole):
    api, own = HfApi(), b"---\nlicense: mit\n---\n# Mine\n"
    api.create_repo(RANKER)
    api.upload_file(path_or_fileobj=own, path_in_repo="README.md", repo_id=RANKER)
    whole.push_to_hub(RANKER)
    assert uploaded(hub)["README.md"] == own
    whole.push_to_hub(RANKER, include_users=True, include_interactions=True)
    text = uploaded(hub)["README.md"].decode()
    assert text.startswith(own.decode()) and "Treat it as personal data" in text
    assert "user ids, who rated what, and when, weights of single users" in text
    whole.model.push_to_hub(RANKER)
    assert "data: user ids, who" not in uploaded(hub)["README.md"].decode()
    assert "about people: user ids, who rated what, and when." in uploaded(hub)["README.md"].decode()


def test_a_section_in_the_middle_of_a_card_is_replaced():
    card = say_who_is_in_it("# A\n\n## Data about people\n\nbefore\n\n# B\n", ["include_users"])
    assert card.startswith("# A\n\n## Data about people\n\nThis repository holds data about people: user ids.")
    assert card.endswith("\n\n# B\n") and "before" not in card


# -- uploads that are not pushes --------------------------------------------------------------------------------------


def ordinary(whole, folder):
    return Trainer(
        whole.model,
        TrainingArguments(str(folder), hub_model_id=RANKER, use_cpu=True),
        processing_class=whole.processor,
    )


def test_the_ordinary_trainer_uploads_nothing_of_a_folder_that_is_about_people(hub, whole, tmp_path):
    """`transformers.Trainer` uploads its folder whole, `training_args.bin` and all; no class of ours is asked."""
    ordinary(whole, tmp_path / "run").push_to_hub()
    assert USERS[0].encode() in readable({p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.parquet")})
    assert uploaded(hub) == {}
    push_saved(tmp_path / "run", RANKER)
    assert set(uploaded(hub)) == MODEL | PROCESSOR
    assert not any(user.encode() in readable(uploaded(hub)) for user in USERS)


def test_the_ordinary_trainer_pushes_what_is_not_about_people(hub, whole, dataset, tmp_path):
    whole.push_to_hub(RANKER)
    public = Recommender.from_pretrained(RANKER)
    public.model.fusion.evidence_weight.data.fill_(7.0)
    ordinary(public, tmp_path / "run").push_to_hub()
    assert "training_args.bin" in uploaded(hub)
    assert not any(user.encode() in readable(uploaded(hub)) for user in USERS)
    again = Recommender.from_pretrained(RANKER)
    assert torch.equal(logits(again.model, again.processor, dataset), logits(public.model, public.processor, dataset))


@pytest.mark.parametrize("part", ["model", "processor"])
def test_either_part_keeps_its_folder_at_home(hub, whole, tmp_path, part):
    api = HfApi()
    api.create_repo(RANKER)
    getattr(whole, part).save_pretrained(tmp_path / "run")
    api.upload_folder(repo_id=RANKER, folder_path=tmp_path / "run")
    assert uploaded(hub) == {}
    assert "llamarec-lkg push" in (tmp_path / "run" / ".gitignore").read_text()
    # as the whole checkpoints of `hub_strategy="checkpoint"` go up: only at the root such a file is heard
    api.upload_folder(repo_id=RANKER, folder_path=tmp_path / "run", path_in_repo="last-checkpoint")
    assert any(path.startswith("last-checkpoint/") for path in uploaded(hub))


def test_a_graph_of_people_without_their_ids_stays_at_home_too(whole, dataset, tmp_path):
    proc, items = whole.processor, dataset.items
    LlamaRecLKGProcessor(proc.tokenizer, proc.knowledge_graph, items.ids, items.titles).save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / ".gitignore").exists()
    graph = proc.knowledge_graph.without_people()
    LlamaRecLKGProcessor(proc.tokenizer, graph, items.ids, items.titles).save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / ".gitignore").exists()


@pytest.mark.parametrize("first", ["model", "processor"])
@pytest.mark.parametrize("name", [".git/HEAD", "train.py", "notes.ipynb", "pyproject.toml"])
def test_the_work_that_a_folder_holds_is_not_hidden_from_git(whole, tmp_path, caplog, first, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    parts = ("model", "processor") if first == "model" else ("processor", "model")
    for part in parts:
        getattr(whole, part).save_pretrained(tmp_path)
    assert not (tmp_path / ".gitignore").exists()
    said = [text for text in caplog.messages if "about people" in text]
    assert len(said) == 1 and str(tmp_path) in said[0] and name.partition("/")[0] in said[0]
    assert "a folder of its own" in said[0] and "`*.parquet`" in said[0] and "`*.safetensors`" in said[0]


def test_a_folder_of_ours_is_no_work_of_somebodys(whole, tmp_path, caplog):
    graph, items = whole.processor.knowledge_graph.without_people(), whole.processor
    public = LlamaRecLKGProcessor(items.tokenizer, graph, items.item_ids, items.titles)
    public.save_pretrained(tmp_path)  # with the file of ours that is Python
    assert not (tmp_path / ".gitignore").exists() and (tmp_path / SHIM).exists()
    for name in ("README.md", "report.png", "training_args.bin", "config.yaml", "emissions.csv"):
        (tmp_path / name).write_text("of the run")
    (tmp_path / "runs").mkdir()
    whole.model.save_pretrained(tmp_path)
    assert (tmp_path / ".gitignore").exists() and "about people" not in caplog.text


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("*.log\n", False),
        ("*\n!users.parquet\n", False),
        ("# all\n/*\n!.gitignore\n", True),
        ("*.parquet\n*.safetensors\n", True),
    ],
)
def test_a_gitignore_of_ones_own_stays_and_what_it_lets_through_is_told_once(whole, tmp_path, caplog, rules, kept):
    (tmp_path / ".gitignore").write_text(rules)
    for part in (whole.processor, whole.model, whole.processor):
        part.save_pretrained(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == rules
    said = [text for text in caplog.messages if "about people" in text]
    assert len(said) == (0 if kept else 1)
    assert kept or "does not leave out" in said[0] and "users.parquet" in said[0]


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["model", "processor", "recommender", "merged"])
def test_an_argument_that_nobody_knows_is_refused(hub, whole, tmp_path, part):
    if part == "merged":
        whole.model.merge_adapter()
    pushing = {"model": whole.model, "merged": whole.model, "processor": whole.processor, "recommender": whole}[part]
    with pytest.raises(TypeError, match="'privat' is no argument of saving or pushing; 'private' is"):
        pushing.push_to_hub(RANKER, privat=True, commit_message="x")
    with pytest.raises(TypeError, match="'includ_users' is no .* 'include_users' is.*Nothing was uploaded"):
        pushing.save_pretrained(tmp_path / "run", push_to_hub=True, repo_id=RANKER, includ_users=True)
    with pytest.raises(TypeError, match=r"'xyz' is no argument of saving or pushing\. Nothing"):
        pushing.save_pretrained(tmp_path / "run", push_to_hub=True, xyz=1)
    assert not hub.exists(RANKER) and not (tmp_path / "run").exists()


def test_the_arguments_of_saving_and_pushing_are_known(whole, tmp_path):
    whole.model.save_pretrained(tmp_path / "a", is_main_process=True, state_dict=None, max_shard_size="1GB")
    whole.processor.save_pretrained(tmp_path / "a", push_to_hub=False, private=True)
    assert {"private", "token", "include_users", "remove_retriever"} < PUSH_OPTIONS
    assert not PUSH_OPTIONS & {"folder", "repo_id", "parts"}


# -- the backbone's name ----------------------------------------------------------------------------------------------


def test_a_backbone_that_is_a_folder_here_is_refused_or_named(hub, dataset, tmp_path):
    backbone().save_pretrained(tmp_path / "secret-place")
    push_backbone()
    here = recommender(dataset, name=str(tmp_path / "secret-place"))
    with pytest.raises(LKGError, match=r"secret-place'?: no name that others can load. Give `backbone='owner/name'"):
        here.push_to_hub(RANKER)
    assert not hub.exists(RANKER)
    here.push_to_hub(RANKER, backbone=BACKBONE)
    assert b"secret-place" not in readable(uploaded(hub))
    again = AutoModel.from_pretrained(RANKER)
    assert torch.equal(logits(again, here.processor, dataset), logits(here.model, here.processor, dataset))
    here.model.merge_adapter()
    here.push_to_hub("tester/merged")
    assert b"secret-place" not in readable(uploaded(hub, "tester/merged"))


def test_no_folder_of_this_machine_is_named(hub, whole, tmp_path):
    whole.save_pretrained(tmp_path / "run")
    again = Recommender.from_pretrained(tmp_path / "run")
    again.push_to_hub(RANKER)
    again.model.merge_adapter()
    again.push_to_hub("tester/merged")
    for repo_id in (RANKER, "tester/merged"):
        assert str(tmp_path).encode() not in readable(uploaded(hub, repo_id))


# -- where it goes ----------------------------------------------------------------------------------------------------


def test_revisions_pull_requests_and_private_repositories(hub, whole):
    whole.push_to_hub("ranker", private=True, commit_message="one")  # without its owner
    assert hub.repository(RANKER).private and titles(hub) == ["one", "initial commit"]
    assert 'from_pretrained("tester/ranker")' in uploaded(hub)["README.md"].decode()
    whole.model.fusion.evidence_weight.data.fill_(7.0)
    whole.push_to_hub(RANKER, revision="v2", commit_message="two")
    assert titles(hub) == ["one", "initial commit"] and titles(hub, revision="v2")[0] == "two"
    weights = [
        Recommender.from_pretrained(RANKER, revision=r).model.fusion.evidence_weight.item() for r in (None, "v2")
    ]
    assert weights == [2.0, 7.0]
    done = whole.push_to_hub(RANKER, create_pr=True, commit_message="three")
    assert done.pr_url and titles(hub)[0] == "one" and titles(hub, revision="refs/pr/1")[0] == "three"
    assert AutoModel.from_pretrained(RANKER, revision="refs/pr/1").fusion.evidence_weight.item() == 7.0


def test_a_public_repository_is_not_taken_for_a_private_one(hub, whole):
    HfApi().create_repo(RANKER)
    with pytest.raises(LKGError, match="exists already and is public"):
        whole.push_to_hub(RANKER, private=True)
    assert titles(hub) == ["initial commit"]


def test_who_may_not_write_may_propose(hub, whole, tmp_path):
    whole.push_to_hub(RANKER)
    other = hub.add_account("other")
    whole.model.fusion.evidence_weight.data.fill_(7.0)
    with use_hub(hub, tmp_path / "other", token=other):
        with pytest.raises(LKGError, match="could not be"):
            whole.push_to_hub(RANKER)
        assert whole.push_to_hub(RANKER, create_pr=True).pr_url
    assert len(hub.commits(RANKER)) == 2


@pytest.mark.parametrize("name", ["a/b/c", "you/na me", ""])
def test_an_id_has_an_owner_and_a_name(hub, whole, name):
    with pytest.raises(LKGError, match="has the form 'owner/name'"):
        whole.push_to_hub(name)


# -- folders that are not whole ---------------------------------------------------------------------------------------


def test_a_folder_that_is_not_whole_is_not_pushed(hub, whole, tmp_path):
    whole.save_pretrained(tmp_path / "run")
    for path, said in (
        ("adapter/adapter_model.safetensors", r"\['adapter/'\] is missing"),
        ("model.safetensors", "'preference.bias', 'fusion.evidence_weight'"),
        ("knowledge_graph/nodes.parquet", r"\['knowledge_graph/nodes.parquet'\] is missing"),
    ):
        (tmp_path / "run" / path).rename(tmp_path / "aside")
        with pytest.raises(LKGError, match=said):
            push_saved(tmp_path / "run", RANKER)
        (tmp_path / "aside").rename(tmp_path / "run" / path)
    with pytest.raises(LKGError, match="neither a model"):
        push_saved(tmp_path, RANKER)
    assert not hub.exists(RANKER)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    push_saved(tmp_path / "run", RANKER)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_what_else_lies_in_a_folder_stays_there(hub, whole, tmp_path):
    folder = tmp_path / "run"
    whole.save_pretrained(folder)
    for name in ("hf_token.json", "training_args.json", "optimizer.pt", "checkpoint-5/model.safetensors",
                 "adapter/optimizer.bin", "retriever/log.json", "retriever/stage.json", "config.yaml"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    assert main(["push", str(folder), RANKER, "--private", "--commit-message", "from the shell"]) == 0
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER
    assert hub.repository(RANKER).private and titles(hub)[0] == "from the shell"


def test_the_command_says_what_is_wrong_and_where_it_went(hub, whole, tmp_path, capsys):
    assert main(["push", str(tmp_path), RANKER]) == 1
    assert "holds neither a model" in capsys.readouterr().err
    whole.save_pretrained(tmp_path / "run")
    assert main(["push", str(tmp_path / "run"), "tester/other"]) == 0 and hub.exists("tester/other")
    assert main(["recommend", "--model", "tester/other", "--history", "1", "-k", "2"]) == 0
    assert "  2. " in capsys.readouterr().out
    assert main(["push", str(tmp_path / "run"), RANKER, "--create-pr", "--include-users"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{RANKER}/discussions/1")
    text = readable(uploaded(hub, revision="refs/pr/1"))
    assert all(user.encode() in text for user in USERS)


@pytest.mark.parametrize(
    "path, pattern, fits",
    [
        ("a/config.json", "*.json", False),
        ("a/config.json", "*/config.json", True),
    ],
)
def test_a_star_stops_at_a_slash(path, pattern, fits):
    assert matches(path, [pattern]) is fits


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "match, how",
    [
        ("POST */commit/*", "cut"),
        ("POST */commit/*", "reset"),
        ("POST */commit/*", "lost"),
        ("PUT *", "cut"),
        ("PUT *", "500"),
        ("POST *.git/info/lfs/objects/batch", "429"),
        ("POST */preupload/*", "429"),
    ],
)
def test_a_failure_that_passes_is_retried(hub, whole, match, how):
    failure = hub.fail(match, how)
    whole.push_to_hub(RANKER)
    assert failure.happened == 1
    assert titles(hub) == ["Upload model, processor, retriever with llamarec_lkg", "initial commit"]
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER


def test_an_answer_that_never_comes_is_asked_for_again(hub, whole):
    failure = hub.fail("POST */commit/*", "timeout", seconds=0.2)
    whole.push_to_hub(RANKER)
    assert failure.happened == 1 and len(hub.commits(RANKER)) == 2


@pytest.mark.parametrize(
    "match, how, said",
    [
        ("POST /api/repos/create", "401", "could not be opened for writing .*401"),
        ("POST /api/repos/create", "cut", "could not be opened for writing"),
        (
            "POST */commit/*",
            "401",
            "could not be pushed to 'tester/ranker' .*401.*Nothing of it is visible there, since",
        ),
        ("POST */commit/*", "429", "could not be pushed to 'tester/ranker' .*429"),
        ("POST */commit/*", "500", "could not be pushed to 'tester/ranker' .*500"),
        ("POST */commit/*", "cut", "could not be pushed to 'tester/ranker' .*or all of it, if only the last answer"),
        ("PUT *", "500", "could not be pushed to 'tester/ranker'"),
        ("PUT *", "reset", "could not be pushed to 'tester/ranker'"),
        ("POST */preupload/*", "429", "could not be pushed to 'tester/ranker'"),
    ],
)
def test_a_failure_that_stays_is_told_and_leaves_nothing(hub, whole, tmp_path, match, how, said):
    whole.save_pretrained(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    failure = hub.fail(match, how, times=None)
    with pytest.raises(LKGError, match=f"(?s){said}.*push again"):
        push_saved(tmp_path / "run", RANKER)
    assert failure.happened
    assert not hub.exists(RANKER) or titles(hub) == ["initial commit"]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    failure.times = failure.happened  # the trouble is over
    push_saved(tmp_path / "run", RANKER)
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER


def test_a_lost_answer_to_a_pull_request_does_not_open_a_second_one(hub, whole):
    whole.push_to_hub(RANKER)
    whole.model.fusion.evidence_weight.data.fill_(7.0)
    hub.fail("POST */commit/*", "lost", times=None)
    with pytest.raises(LKGError, match="or all of it, if only the last answer was lost"):
        whole.push_to_hub(RANKER, create_pr=True)
    assert len(hub.calls("POST */commit/*")) == len(hub.calls("POST */tester/ranker/commit/*")) + 1
    assert "refs/pr/1" in hub.repository(RANKER).refs and "refs/pr/2" not in hub.repository(RANKER).refs


def test_a_wrong_token_is_told(hub, whole):
    with pytest.raises(LKGError, match="Give 'owner/name', and log in"):
        whole.push_to_hub("ranker", token="hf_wrong")
    with pytest.raises(LKGError, match=r"(?s)tester/ranker' could not be .*401.*Nothing was uploaded.*hf auth whoami"):
        whole.push_to_hub(RANKER, token="hf_wrong")


def test_graphs_go_up_as_large_files(hub, whole):
    whole.push_to_hub(RANKER)
    stored = {path for path, file in hub.commits(RANKER)[0].files.items() if file.lfs}
    assert {"knowledge_graph/graph.safetensors", "model.safetensors", "retriever/model.safetensors"} <= stored
    assert Recommender.from_pretrained(RANKER).processor.knowledge_graph.num_edges
