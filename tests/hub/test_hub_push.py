"""What a push uploads and what stays at home; where it goes; and what is left when it fails."""

import json
import re
from dataclasses import replace

import pytest
import torch
from hub_stand_in.client import use_hub
from hub_stand_in.world import (
    BACKBONE,
    RANKER,
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
from transformers import AutoModel

from llamarec_lkg import LKGError, LlamaRecLKGConfig, LlamaRecLKGForRanking, LlamaRecLKGProcessor, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.hub.layout import MODEL_TYPE, PRIVATE_FOLDER, ignore_private
from llamarec_lkg.hub.model_card import MARK
from llamarec_lkg.hub.push import push_folder
from llamarec_lkg.utils.hub import matches


pytestmark = pytest.mark.hub
SHIM = "modeling_llamarec_lkg_hub.py"
MODEL = {"README.md", SHIM, "config.json", "model.safetensors", "adapter/adapter_config.json",
         "adapter/adapter_model.safetensors"}  # fmt: skip
GRAPH = {f"knowledge_graph/{name}" for name in ("graph.json", "graph.safetensors", "nodes.parquet")}
PROCESSOR = {"README.md", SHIM, "processor_config.json", "items.parquet", "tokenizer.json", "tokenizer_config.json",
             *GRAPH}  # fmt: skip
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
    assert not any(name.startswith("language_model") for name in load(files["model.safetensors"]))
    assert all("lora" in name for name in load(files["adapter/adapter_model.safetensors"]))
    assert json.loads(files["config.json"])["backbone_name_or_path"] == BACKBONE
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == BACKBONE
    again = AutoModel.from_pretrained(RANKER)
    assert type(again) is LlamaRecLKGForRanking
    assert torch.allclose(
        logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset), atol=1e-6
    )


def test_a_model_in_shards_goes_up_whole(hub, whole, dataset):
    whole.model.merge_adapter().push_to_hub(RANKER, max_shard_size="40KB")
    files = uploaded(hub)
    shards = [name for name in files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    assert len(shards) > 2 and "model.safetensors" not in files
    index = json.loads(files["model.safetensors.index.json"])["weight_map"]
    assert index.keys() == {name for shard in shards for name in load(files[shard])}
    again = AutoModel.from_pretrained(RANKER)
    assert torch.allclose(
        logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset), atol=1e-6
    )


def test_saving_with_push_to_hub_is_saving_and_pushing(hub, whole, tmp_path):
    whole.model.save_pretrained(tmp_path / "ranker", push_to_hub=True)
    whole.processor.save_pretrained(tmp_path / "ranker", push_to_hub=True, private=True, repo_id="tester/processor")
    assert set(uploaded(hub)) == MODEL
    assert set(uploaded(hub, "tester/processor")) == PROCESSOR and hub.repository("tester/processor").private
    assert LlamaRecLKGProcessor.from_pretrained(tmp_path / "ranker").user_ids == tuple(USERS), "what is saved is whole"
    whole.model.merge_adapter().save_pretrained(tmp_path / "whole", push_to_hub=True)
    assert set(uploaded(hub, "tester/whole")) == {"README.md", SHIM, "config.json", "model.safetensors"}


def test_what_an_older_push_left_goes_and_what_is_not_ours_stays(hub, whole):
    whole.push_to_hub(RANKER)
    api = HfApi()
    for path in ("LICENSE", "adapter_config.json", "adapter_model.safetensors", "notes/adapter.txt"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=path, repo_id=RANKER)
    whole.model.merge_adapter().push_to_hub(RANKER)
    assert set(uploaded(hub)) == (MODEL | PROCESSOR | RETRIEVER | {"LICENSE", "notes/adapter.txt"}) - {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }


def test_a_part_that_is_not_pushed_stays(hub, whole):
    whole.push_to_hub(RANKER)
    Recommender(whole.model, whole.processor).push_to_hub(RANKER)
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER
    assert Recommender.from_pretrained(RANKER).recommend(["1"], k=2)
    Recommender(whole.model, whole.processor).push_to_hub(RANKER, remove_retriever=True)
    assert set(uploaded(hub)) == MODEL | PROCESSOR
    assert "recommend(history=items[:2], candidates=" in ModelCard.load(RANKER).text, "the snippet does without"
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
    api.upload_file(path_or_fileobj=b"*.parquet\n", path_in_repo=".gitignore", repo_id=RANKER)
    with pytest.raises(LKGError, match=r"would leave out \['items.parquet', 'knowledge_graph/nodes.parquet'\]"):
        whole.push_to_hub(RANKER)
    whole.model.push_to_hub(RANKER)


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


def test_a_card_is_valid_runs_and_gives_way_to_one_that_somebody_wrote(hub, whole, capsys):
    for repo_id, push, snippets in (
        (RANKER, whole.push_to_hub, 2),
        ("tester/model", whole.model.push_to_hub, 1),
        ("tester/processor", whole.processor.push_to_hub, 1),
        ("tester/two", Recommender(whole.model, whole.processor).push_to_hub, 2),
    ):
        push(repo_id, tags=["films"])
        card = ModelCard.load(repo_id)
        card.validate()
        assert "films" in card.data.tags and card.data.library_name == "llamarec_lkg"
        assert card.data.to_dict().get("base_model") == (None if repo_id == "tester/processor" else BACKBONE)
        found = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        assert len(found) == snippets
        for snippet in found:
            exec(snippet, {})
    assert "  1. " in capsys.readouterr().out
    HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\nMine", path_in_repo="README.md", repo_id=RANKER)
    whole.push_to_hub(RANKER)
    whole.push_to_hub(RANKER, revision="v2")  # a new branch begins with the card of the main one
    for revision in ("main", "v2"):
        assert uploaded(hub, revision=revision)["README.md"].endswith(b"Mine")
    whole.push_to_hub(RANKER, revision="v2", card="Given.")
    assert uploaded(hub, revision="v2")["README.md"] == b"Given."
    hub.fail("HEAD */README.md", "429", times=None)
    with pytest.raises(LKGError, match="could not be asked for its card"):
        whole.push_to_hub(RANKER)


def test_a_card_that_a_push_wrote_follows_what_the_repository_holds(hub, whole):
    def card():
        return ModelCard.load(RANKER)

    whole.processor.push_to_hub(RANKER, tags=["films"])
    assert "The processor of a recommendation ranker" in card().text and card().data.pipeline_tag is None
    whole.model.push_to_hub(RANKER)
    assert "A recommendation ranker: a causal language model" in card().text
    assert (card().data.base_model, card().data.pipeline_tag) == (BACKBONE, "text-ranking")
    assert "recommend(history=items[:2], candidates=" in card().text
    assert f"backbone `{BACKBONE}` is loaded by its name" in card().text
    whole.processor.push_to_hub(RANKER)
    assert (card().data.base_model, card().data.pipeline_tag) == (BACKBONE, "text-ranking"), "the model is still there"
    whole.push_to_hub(RANKER, tags=["old"])
    assert "recommend(history=recommender.item_ids[:3], k=5)" in card().text, "there is a retriever now"
    assert f'from_pretrained("{RANKER}")' in card().text
    metadata = card()
    metadata.data.license = "mit"  # as the Hub's own page lets one edit it
    metadata.push_to_hub(RANKER)
    whole.model.merge_adapter().push_to_hub(RANKER)
    assert "is loaded by its name" not in card().text
    assert card().data.license == "mit" and {"films", "old", "knowledge-graph"} <= set(card().data.tags)
    assert len(card().data.tags) == 5, "each once"
    assert "under the licence `mit`" in card().text
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


@pytest.mark.parametrize("part", ["model", "processor", "recommender", "merged"])
def test_an_argument_that_nobody_knows_is_refused(hub, whole, tmp_path, part):
    if part == "merged":
        whole.model.merge_adapter()
    pushing = {"model": whole.model, "merged": whole.model, "processor": whole.processor, "recommender": whole}[part]
    with pytest.raises(TypeError, match="'privat' is no argument of saving or pushing; 'private' is"):
        pushing.push_to_hub(RANKER, privat=True, commit_message="x")
    with pytest.raises(TypeError, match="'share_user' is no .* 'share_users' is.*Nothing was uploaded"):
        pushing.save_pretrained(tmp_path / "run", push_to_hub=True, repo_id=RANKER, share_user=True)
    with pytest.raises(TypeError, match=r"'xyz' is no argument of saving or pushing\. Nothing"):
        pushing.save_pretrained(tmp_path / "run", push_to_hub=True, xyz=1)
    assert not hub.exists(RANKER) and not (tmp_path / "run").exists()


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
    assert torch.allclose(
        logits(again, here.processor, dataset), logits(here.model, here.processor, dataset), atol=1e-6
    )
    here.model.merge_adapter()
    here.save_pretrained(tmp_path / "run")
    Recommender.from_pretrained(tmp_path / "run").push_to_hub("tester/merged")
    assert str(tmp_path).encode() not in readable(uploaded(hub, "tester/merged"))


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
        ("adapter/adapter_model.safetensors", r"\['adapter/adapter_model.safetensors'\] is missing"),
        ("model.safetensors", "'preference.bias', 'fusion.evidence_weight'"),
        ("knowledge_graph/nodes.parquet", r"\['knowledge_graph/nodes.parquet'\] is missing"),
    ):
        (tmp_path / "run" / path).rename(tmp_path / "aside")
        with pytest.raises(LKGError, match=said):
            push_folder(tmp_path / "run", RANKER)
        (tmp_path / "aside").rename(tmp_path / "run" / path)
    with pytest.raises(LKGError, match="neither a model"):
        push_folder(tmp_path, RANKER)
    assert not hub.exists(RANKER)


def test_a_gitignore_names_private_once_and_keeps_what_it_holds(tmp_path):
    ignore_private(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == f"{PRIVATE_FOLDER}/\ncheckpoint*/\n"
    for rules in ("*.log", "*.log\n", "*.log\nprivate/\n"):
        (tmp_path / ".gitignore").write_text(rules)
        ignore_private(tmp_path)
        assert (tmp_path / ".gitignore").read_text() == "*.log\nprivate/\ncheckpoint*/\n"


def test_what_else_lies_in_a_folder_stays_there(hub, whole, tmp_path):
    folder = tmp_path / "run"
    whole.save_pretrained(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in ("hf_token.json", "training_args.json", "optimizer.pt", "checkpoint-5/model.safetensors",
                 "adapter/optimizer.bin", "retriever/log.json", "retriever/stage.json", "config.yaml"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    assert main(["push", str(folder), RANKER, "--private", "--commit-message", "from the shell"]) == 0
    assert set(uploaded(hub)) == MODEL | PROCESSOR | RETRIEVER
    assert hub.repository(RANKER).private and titles(hub)[0] == "from the shell"
    assert all(path.read_bytes() == content for path, content in before.items()), "the folder is as it was"


def test_the_command_says_what_is_wrong_and_where_it_went(hub, whole, tmp_path, capsys):
    assert main(["push", str(tmp_path), RANKER]) == 1
    assert "holds neither a model" in capsys.readouterr().err
    whole.save_pretrained(tmp_path / "run")
    assert main(["push", str(tmp_path / "run"), "tester/other"]) == 0 and hub.exists("tester/other")
    assert main(["recommend", "--model", "tester/other", "--history", "1", "-k", "2"]) == 0
    assert "  2. " in capsys.readouterr().out
    assert main(["push", str(tmp_path / "run"), RANKER, "--create-pr", "--share-users"]) == 0
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
        push_folder(tmp_path / "run", RANKER)
    assert failure.happened
    assert not hub.exists(RANKER) or titles(hub) == ["initial commit"]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    failure.times = failure.happened  # the trouble is over
    push_folder(tmp_path / "run", RANKER)
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
