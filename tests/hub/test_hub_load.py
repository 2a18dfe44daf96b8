"""Loading by one line: every kind of repository, wrong combinations, and the paths on which preferences could get
lost."""

import inspect
import io
import json
import time
import warnings

import pytest
import torch
from hub_stand_in.client import use_hub
from hub_stand_in.world import (
    BACKBONE,
    RANKER,
    USERS,
    logits,
    named_dataset,
    processor,
    push_backbone,
    ranker,
    recommender,
    uploaded,
)
from huggingface_hub import HfApi, get_session
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import examples, tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

from llamarec_lkg import (
    KnowledgeGraph,
    LKGError,
    LlamaRecLKGConfig,
    LlamaRecLKGForRanking,
    LlamaRecLKGProcessor,
    LlamaRecLKGTrainer,
    LlamaRecLKGTrainingArguments,
    LRURecConfig,
    LRURecForRetrieval,
    Recommender,
)
from llamarec_lkg.data.sequences import PreprocessingSettings, prepare_dataset
from llamarec_lkg.ranking.adapters import AdapterMixin
from llamarec_lkg.retrieval.base import PopularityRetriever
from llamarec_lkg.retrieval.modeling_lrurec import LRURecRetriever
from llamarec_lkg.retrieval.training import LRURecTrainingArguments, train_lrurec


pytestmark = pytest.mark.hub


@pytest.fixture
def dataset(make_dataset, film_items):
    return named_dataset(make_dataset, film_items)


@pytest.fixture
def other_dataset(make_dataset, film_items):
    """As many films with the same relations, but other ids."""
    items = film_items.assign(item_id=[f"m{raw}" for raw in film_items["item_id"]])
    rows = [(u, f"m{(n + s) % 6 + 1}", 100 * s, 1.0) for n, u in enumerate(USERS) for s in range(5)]
    return make_dataset(rows, items)


@pytest.fixture
def whole(hub, dataset) -> Recommender:
    push_backbone()
    return recommender(dataset)


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, atol=1e-6)


def put(content: bytes, path: str, repo_id: str = RANKER) -> None:
    HfApi().upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo_id)


# -- every kind of repository -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapter", "merged", "full", "heads"])
def test_every_kind_loads_in_one_line(hub, whole, dataset, kind):
    if kind == "adapter":
        model = whole.model
    elif kind == "merged":
        model = whole.model.merge_adapter()
    else:
        model = ranker(whole.processor, adapter=False)
    model.push_to_hub(RANKER, include_backbone=False if kind == "heads" else None)
    whole.processor.push_to_hub(RANKER)
    again = AutoModel.from_pretrained(RANKER)
    assert type(again) is LlamaRecLKGForRanking and not again.training
    assert same(logits(again, whole.processor, dataset), logits(model, whole.processor, dataset))
    config, proc = AutoConfig.from_pretrained(RANKER), AutoProcessor.from_pretrained(RANKER)
    assert type(config) is LlamaRecLKGConfig and type(proc) is LlamaRecLKGProcessor
    proc.check_model(config)
    size = len(uploaded(hub)["model.safetensors"])
    assert (size < 30_000) == (kind in ("adapter", "heads")), "the small form holds no backbone"
    half = AutoModel.from_pretrained(RANKER, dtype=torch.bfloat16)
    assert half.get_input_embeddings().weight.dtype == torch.bfloat16
    assert half.preference.bias.dtype == torch.float32


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_backbone_comes_in_4_bit_when_asked_for(hub, dataset, kind):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    push_backbone(**sizes)
    proc = processor(dataset)
    wanted = ranker(proc, adapter=kind == "adapter")
    wanted.push_to_hub(RANKER)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    again = AutoModel.from_pretrained(RANKER, quantization_config=settings)
    kinds = {type(module).__name__ for module in again.language_model.modules()}
    assert any("4bit" in name for name in kinds)
    own = {name: value for name, value in again.state_dict().items() if not name.startswith("language_model.")}
    assert all(value.dtype == torch.float32 for value in own.values())
    for name, value in own.items():
        assert torch.equal(value, wanted.state_dict()[name])
    found = logits(again, proc, dataset)
    assert torch.allclose(found, logits(wanted, proc, dataset), atol=1.0) and found.isfinite().all()


def test_training_goes_on_from_a_repository(hub, whole, dataset):
    whole.model.push_to_hub(RANKER)
    again = LlamaRecLKGForRanking.from_pretrained(RANKER, is_trainable=True)
    trained = {name for name, weight in again.named_parameters() if weight.requires_grad}
    assert any("lora" in name for name in trained) and "preference.bias" in trained


def test_the_pipeline_loads_and_pushes_the_same_repository(hub, whole):
    whole.push_to_hub(RANKER)
    recommend = pipeline("recommendation", model=RANKER, device="cpu")
    wanted = Recommender.from_pretrained(RANKER).recommend(["1", "4"], k=3)
    assert [item["item_id"] for item in recommend({"history": ["1", "4"]}, top_k=3)] == [i.item_id for i in wanted]
    recommend.push_to_hub("tester/again", private=True)
    assert uploaded(hub, "tester/again").keys() == uploaded(hub).keys() and hub.repository("tester/again").private


def test_the_pipeline_finds_the_retriever_of_parts_that_were_loaded_from_the_hub(hub, whole, caplog):
    whole.push_to_hub(RANKER, revision="v1", private=True)
    model, proc = (auto.from_pretrained(RANKER, revision="v1") for auto in (AutoModel, AutoProcessor))
    with caplog.at_level("WARNING"):
        recommend = pipeline("recommendation", model=model, processor=proc, device="cpu")
    assert isinstance(recommend.recommender.retriever, LRURecRetriever) and "retriever" not in caplog.text
    wanted = Recommender.from_pretrained(RANKER, revision="v1").recommend(["1", "4"], k=3)
    assert [item["item_id"] for item in recommend({"history": ["1", "4"]}, top_k=3)] == [i.item_id for i in wanted]
    made = ranker(proc)  # was loaded from nowhere
    assert pipeline("recommendation", model=made, processor=proc, device="cpu").recommender.retriever is None


def test_a_repository_without_a_retriever_ranks_what_it_is_given(hub, whole):
    Recommender(whole.model, whole.processor).push_to_hub(RANKER)
    again = Recommender.from_pretrained(RANKER)
    assert again.retriever is None and len(again.recommend(["1"], candidates=["2", "3"])) == 2
    with pytest.raises(LKGError, match="no retriever"):
        again.recommend(["1"])


def before_each_call(monkeypatch, place, name, act):
    """Do something just before a method runs."""
    found = inspect.getattr_static(place, name)
    method = getattr(found, "__func__", found)

    def wrapped(*args, **kwargs):
        act()
        return method(*args, **kwargs)

    monkeypatch.setattr(place, name, classmethod(wrapped) if isinstance(found, classmethod) else wrapped)


@pytest.mark.parametrize(
    "load, place, name",
    [
        (LlamaRecLKGForRanking.from_pretrained, AdapterMixin, "_attach_adapter"),
        (Recommender.from_pretrained, AdapterMixin, "_attach_adapter"),
        (Recommender.from_pretrained, LlamaRecLKGProcessor, "from_pretrained"),
        (Recommender.from_pretrained, LRURecForRetrieval, "from_pretrained"),
        ("model.load_adapter", AdapterMixin, "_attach_adapter"),
        ("load_adapter", LRURecForRetrieval, "from_pretrained"),
        ("load_adapter", AdapterMixin, "load_adapter"),
        ("load_adapter", AdapterMixin, "_attach_adapter"),
    ],
)
def test_all_parts_come_from_one_commit(hub, whole, dataset, monkeypatch, load, place, name):
    """Another version is pushed when some parts are loaded, and others are not."""
    whole.push_to_hub(RANKER)
    if isinstance(load, str):
        first = Recommender.from_pretrained(RANKER)
        target = first.model if load.startswith("model.") else first
        load = lambda repo: target.load_adapter(repo, "second") or first.model.set_adapter("second") or first  # noqa: E731
    proc = processor(dataset, history_length=2).fit(examples(dataset))
    retriever = LRURecRetriever(LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=16)).eval())
    newer = Recommender(ranker(proc), proc, retriever)
    newer.model.fusion.evidence_weight.data.fill_(7.0)
    for key, weight in newer.model.named_parameters():
        if "lora_B" in key:
            weight.data.fill_(5.0)
    pushed = []
    before_each_call(monkeypatch, place, name, lambda: pushed or pushed.append(True) or newer.push_to_hub(RANKER))
    found = load(RANKER)
    assert pushed and len(hub.calls("POST */commit/*")) >= 2
    model = getattr(found, "model", found)
    lora = [weight for key, weight in model.named_parameters() if "lora_B" in key]
    assert model.fusion.evidence_weight.item() == 2.0 and max(weight.max() for weight in lora) < 5.0
    if isinstance(found, Recommender):
        assert found.processor.history_length == 4 and found.retriever.model.config.hidden_size == 8
    assert Recommender.from_pretrained(RANKER).model.fusion.evidence_weight.item() == 7.0, "and now the newer one"


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_what_was_loaded_before_is_loaded_offline(hub, whole, dataset, monkeypatch, how):
    whole.push_to_hub(RANKER)
    Recommender.from_pretrained(RANKER)
    options = {"local_files_only": True} if how == "local_files_only" else {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    hub.fail("*", "reset", times=None)
    again = LlamaRecLKGForRanking.from_pretrained(RANKER, **options)
    again.load_adapter(RANKER, "second", **options)
    again.set_adapter("second")
    assert same(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))
    assert Recommender.from_pretrained(RANKER, **options).retriever is not None


def test_a_token_is_not_in_the_model(hub, whole, tmp_path):
    whole.push_to_hub(RANKER, private=True)
    backbone = AutoModelForCausalLM.from_pretrained(BACKBONE)
    with use_hub(hub, tmp_path / "home", token=None):
        with pytest.raises(OSError, match="no repository of this id, or none that your token may see"):
            LlamaRecLKGForRanking.from_pretrained(RANKER, backbone=backbone)
        model = LlamaRecLKGForRanking.from_pretrained(RANKER, backbone=backbone, token=hub.token)
        model.load_adapter(RANKER, "second", token=hub.token, same_backbone=True)
    content = io.BytesIO()
    torch.save(model, content)
    assert hub.token.encode() not in content.getvalue()


def test_what_is_loaded_here_is_saved_and_loaded_without_the_hub(hub, whole, dataset, tmp_path):
    whole.push_to_hub(RANKER)
    Recommender.from_pretrained(RANKER).save_pretrained(tmp_path / "copy")
    local = Recommender.from_pretrained(tmp_path / "copy", local_files_only=True)
    assert same(logits(local.model, whole.processor, dataset), logits(whole.model, whole.processor, dataset))
    assert not list((tmp_path / "copy").glob("[!m]*.py")), "the package's own code is not copied"


# -- the backbone -----------------------------------------------------------------------------------------------------


def test_a_backbone_that_is_not_there_is_named_and_can_be_given(hub, whole, dataset):
    whole.model.push_to_hub(RANKER)
    push_backbone("tester/copy")
    with pytest.raises(
        LKGError, match="(?s)around the backbone 'tester/gone', which could not be loaded.*Give `backb"
    ):
        config = AutoConfig.from_pretrained(RANKER)
        config.backbone_name_or_path = "tester/gone"
        LlamaRecLKGForRanking.from_pretrained(RANKER, config=config)
    again = AutoModel.from_pretrained(RANKER, backbone="tester/copy")
    assert same(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))


def test_another_backbone_under_the_name_is_refused(hub, whole):
    whole.model.push_to_hub(RANKER)
    push_backbone(num_hidden_layers=1)
    with pytest.raises(LKGError, match=r"another backbone than the one loaded; .*'num_hidden_layers': \(2, 1\)"):
        AutoModel.from_pretrained(RANKER, backbone=BACKBONE)


def test_the_quickstarts_backbone_has_a_name_everywhere(monkeypatch):
    from llamarec_lkg.hub.saved_folder import public_backbone
    from llamarec_lkg.utils.hub import HUB_IDS, SMOLLM2_NAME, is_local

    assert public_backbone(SMOLLM2_NAME) == SMOLLM2_NAME and not is_local(SMOLLM2_NAME)

    def fail(name):
        raise LKGError("no network")

    monkeypatch.setattr("llamarec_lkg.ranking.backbones.resolve_backbone", fail)
    config = LlamaRecLKGConfig(relations=["A"], backbone_name_or_path=SMOLLM2_NAME)
    with pytest.raises(LKGError, match=rf"no network.*On the Hub it is '{HUB_IDS[SMOLLM2_NAME]}'"):
        LlamaRecLKGForRanking._around_backbone("x", None, config, {})


def test_backbone_true_is_what_was_saved(hub, whole, dataset):
    whole.model.push_to_hub(RANKER)
    again = AutoModel.from_pretrained(RANKER, backbone=True)
    assert same(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))


def test_a_backbone_for_a_model_that_has_its_own_is_refused(hub, whole):
    whole.model.merge_adapter().push_to_hub(RANKER)
    with pytest.raises(LKGError, match="backbone='tester/copy' was given, but tester/ranker names no backbone"):
        AutoModel.from_pretrained(RANKER, backbone="tester/copy")


def test_another_copy_of_the_backbone_is_not_asked_for_the_firsts_branch(hub, whole, dataset):
    whole.model.config.backbone_revision = "v1"
    whole.model.push_to_hub(RANKER)
    push_backbone("tester/copy")
    with pytest.raises(LKGError, match="v1"):
        AutoModel.from_pretrained(RANKER)
    again = AutoModel.from_pretrained(RANKER, backbone="tester/copy")
    assert same(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))


@pytest.mark.parametrize("how", ["backbone", "field", "config"])
@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_a_ranker_loaded_without_its_backbone_does_not_overwrite_the_one_with_it(whole, tmp_path, kind, how):
    model = whole.model if kind == "adapter" else whole.model.merge_adapter()
    model.save_pretrained(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    options = {"backbone": {"backbone": False}, "field": {"use_language_model": False}}
    config = LlamaRecLKGConfig.from_pretrained(tmp_path / "run", use_language_model=False)
    heads = AutoModel.from_pretrained(tmp_path / "run", **options.get(how, {"config": config}))
    assert not heads.config.has_adapter and not heads.config.use_language_model
    with pytest.raises(LKGError, match="loaded without it .*`use_language_model=False`.*folder of its own"):
        heads.save_pretrained(tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for _ in range(2):  # over itself it may be saved
        heads.save_pretrained(tmp_path / "heads")
    assert AutoModel.from_pretrained(tmp_path / "heads").language_model is None


@pytest.mark.parametrize("kind", ["adapter", "merged", "no backbone"])
def test_what_loading_found_is_told_for_every_form(whole, tmp_path, kind):
    model = whole.model.merge_adapter() if kind == "merged" else whole.model
    model.save_pretrained(tmp_path / "run")
    options = {"backbone": False} if kind == "no backbone" else {}
    again, info = AutoModel.from_pretrained(tmp_path / "run", output_loading_info=True, **options)
    assert type(again) is LlamaRecLKGForRanking
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


def test_a_backbones_folder_is_a_folder_from_everywhere(whole, dataset, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    whole.model.language_model.unload().save_pretrained(tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    model = LlamaRecLKGForRanking.from_backbone("base", whole.processor.model_config())
    config = whole.processor.model_config()
    given = LlamaRecLKGForRanking.from_backbone(AutoModelForCausalLM.from_pretrained("base"), config)
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained("run")
    monkeypatch.chdir(tmp_path)
    assert model.config.backbone_name_or_path == given.config.backbone_name_or_path == str(tmp_path / "here" / "base")
    again = AutoModel.from_pretrained("here/run")
    assert same(logits(again, whole.processor, dataset), logits(model, whole.processor, dataset))
    with pytest.raises(LKGError, match="no name that others can load"):
        model.push_to_hub(RANKER)


# -- subfolders -------------------------------------------------------------------------------------------------------


def test_a_repository_in_a_subfolder_is_loaded_whole_from_there(hub, whole, dataset, tmp_path):
    """Beside another one at the root, whose retriever and graph must not come in."""
    whole.push_to_hub(RANKER)
    torch.manual_seed(7)
    other = LRURecRetriever(LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=16)).eval())
    second = Recommender(ranker(whole.processor), whole.processor, other)
    second.model.fusion.evidence_weight.data.fill_(5.0)
    second.save_pretrained(tmp_path / "v2")
    HfApi().upload_folder(repo_id=RANKER, folder_path=tmp_path / "v2", path_in_repo="v2")
    wanted = second.recommend(["1", "4"], k=3)
    for again in (
        Recommender.from_pretrained(RANKER, subfolder="v2", force_download=True),
        Recommender.from_pretrained(RANKER).load_adapter(RANKER, "v2", subfolder="v2"),
    ):
        assert again.retriever.model.config.hidden_size == 16
        assert again.model.fusion.evidence_weight.item() == 5.0
        assert again.recommend(["1", "4"], k=3) == wanted


# -- wrong combinations -----------------------------------------------------------------------------------------------


@pytest.fixture
def two(hub, whole, other_dataset):
    """A ranker's repository, and the processor of another data set with the same relations and as many items."""
    whole.push_to_hub(RANKER)
    other = processor(other_dataset).fit(examples(other_dataset))
    other.push_to_hub("tester/other")
    return other


def test_the_graph_of_another_data_set_is_refused(hub, two):
    model, proc = AutoModel.from_pretrained(RANKER), AutoProcessor.from_pretrained("tester/other")
    assert proc.relations == tuple(model.config.relations), "nothing else tells them apart"
    for combine in (
        lambda: proc.check_model(model.config),
        lambda: Recommender(model, proc),
        lambda: pipeline("recommendation", model=RANKER, processor=proc, retriever=False),
        lambda: LlamaRecLKGTrainer(model, processing_class=proc),
    ):
        with pytest.raises(LKGError, match=r"trained to rank other items .*look like \['m1'"):
            combine()
    model.config.catalogue = None
    proc.check_model(model.config)


@pytest.mark.parametrize("load", [AutoProcessor, LlamaRecLKGProcessor, Recommender])
def test_a_graph_among_the_files_of_another_processor_is_refused(hub, two, load):
    for name in ("graph.json", "graph.safetensors", "nodes.parquet"):
        put(hub.files("tester/other")[f"knowledge_graph/{name}"], f"knowledge_graph/{name}")
    with pytest.raises(LKGError, match="was made for other items: it has 6, items.parquet 6, and 'm1' stands where"):
        load.from_pretrained(RANKER)


def test_other_relations_are_refused(hub, whole, dataset):
    whole.push_to_hub(RANKER)
    fewer = whole.processor.knowledge_graph
    graph = KnowledgeGraph.from_networkx(fewer.to_networkx(), whole.processor.item_ids)
    graph = type(graph)(**{**vars(graph), "relations": tuple(f"NEW_{name}" for name in graph.relations)})
    proc = LlamaRecLKGProcessor(
        tokenizer(), graph, whole.processor.item_ids, whole.processor.titles, **whole.processor.settings
    )
    proc.push_to_hub("tester/relations")
    with pytest.raises(LKGError, match="was made for the relations"):
        Recommender(AutoModel.from_pretrained(RANKER), AutoProcessor.from_pretrained("tester/relations"))
    files = uploaded(hub, "tester/relations")
    for name in ("graph.json", "graph.safetensors", "nodes.parquet"):
        put(files[f"knowledge_graph/{name}"], f"knowledge_graph/{name}")
    with pytest.raises(LKGError, match="files are from two places"):
        AutoProcessor.from_pretrained(RANKER)


def test_another_tokenizer_is_refused(hub, whole):
    """Same letters, other tokens for the rest of the prompt."""
    whole.push_to_hub(RANKER)
    content = json.loads(uploaded(hub)["tokenizer.json"])
    vocab = content["model"]["vocab"]
    vocab["#"], vocab["q"] = vocab["q"], vocab["#"]
    put(json.dumps(content).encode(), "tokenizer.json")
    with pytest.raises(LKGError, match="tokenizer writes"):
        Recommender.from_pretrained(RANKER)
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    put(json.dumps(content).encode(), "tokenizer.json")
    with pytest.raises(LKGError, match="tokenizer writes the prompt in other tokens"):
        Recommender.from_pretrained(RANKER)


def test_the_retriever_of_another_data_set_is_refused(whole):
    retriever = LRURecRetriever(LRURecForRetrieval(LRURecConfig(num_items=9, hidden_size=8)).eval())
    with pytest.raises(LKGError, match="retriever knows 9 items, the processor 6"):
        Recommender(whole.model, whole.processor, retriever)


@pytest.fixture
def trained(dataset, other_dataset, tmp_path):
    """Retrievers of the two data sets, each saved and loaded again."""
    found = []
    for number, one in enumerate((dataset, other_dataset)):
        model, _ = train_lrurec(one, LRURecTrainingArguments(hidden_size=8, max_steps=1, eval_steps=1), progress=False)
        model.save_pretrained(tmp_path / f"retriever{number}")
        found.append(LRURecForRetrieval.from_pretrained(tmp_path / f"retriever{number}"))
    return found


def test_the_retriever_of_another_data_set_with_as_many_items_is_refused(hub, whole, trained, tmp_path):
    own, other = map(LRURecRetriever, trained)
    assert own.num_items == other.num_items == len(whole.item_ids), "nothing else tells them apart"
    model, proc = whole.model, whole.processor
    for combine in (
        lambda: Recommender(model, proc, other),
        lambda: pipeline("recommendation", model=model, processor=proc, retriever=other.model, device="cpu"),
        lambda: LlamaRecLKGTrainer(model, processing_class=proc, retriever=other),
        lambda: LlamaRecLKGTrainer(model, processing_class=proc, retriever=other.model),
    ):
        with pytest.raises(LKGError, match=r"trained to find other items than the 6 .*look like \['1', '2', '3'\]"):
            combine()
    Recommender(model, proc, own).push_to_hub(RANKER)
    assert Recommender.from_pretrained(RANKER).recommend(["1"], k=2)
    args = LlamaRecLKGTrainingArguments(str(tmp_path / "run"), use_cpu=True)
    assert LlamaRecLKGTrainer(model, args, processing_class=proc, retriever=own).retriever is own.model


def test_the_retriever_of_another_data_set_in_a_repository_is_refused_before_its_adapter_is_loaded(
    hub, whole, trained, tmp_path
):
    own, other = map(LRURecRetriever, trained)
    Recommender(whole.model, whole.processor, own).save_pretrained(tmp_path / "run")
    other.model.save_pretrained(tmp_path / "run" / "retriever")
    for load in (
        lambda: Recommender.from_pretrained(tmp_path / "run"),
        lambda: pipeline("recommendation", model=str(tmp_path / "run"), device="cpu"),
        lambda: whole.load_adapter(tmp_path / "run", "second"),
    ):
        with pytest.raises(LKGError, match="trained to find other items"):
            load()
    assert whole.model.adapter_names == ["default"]


def test_a_retriever_that_does_not_know_its_catalogue_is_not_checked(whole, trained, dataset, tmp_path):
    """Those of earlier versions, and those that are not of this library."""
    other = trained[1]
    other.config.catalogue = None
    other.save_pretrained(tmp_path / "older")
    content = json.loads((tmp_path / "older" / "config.json").read_text())
    content.pop("catalogue", None)
    (tmp_path / "older" / "config.json").write_text(json.dumps(content))
    older = LRURecRetriever(LRURecForRetrieval.from_pretrained(tmp_path / "older"))
    for retriever in (older, PopularityRetriever.from_dataset(dataset)):
        assert Recommender(whole.model, whole.processor, retriever).recommend(["1"], k=2)


def test_training_notes_the_items_that_the_processor_knows_from_wherever_they_come(whole, trained, make_bundle):
    """The ids of a table, of prepared data that was read again, and of a saved processor are the same."""
    rows = [(u, f"{(n + s) % 6 + 1}", 100 * s, 1.0) for n, u in enumerate(USERS) for s in range(5)]
    settings = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
    found = {trained[0].config.catalogue, whole.processor.catalogue}
    for _ in range(2):  # the second time out of the cache
        dataset = prepare_dataset(make_bundle(rows), settings)
        arguments = LRURecTrainingArguments(hidden_size=8, max_steps=1, eval_steps=1)
        found |= {train_lrurec(dataset, arguments, progress=False)[0].config.catalogue, processor(dataset).catalogue}
    assert len(found) == 1 and None not in found


# -- where preferences could get lost ---------------------------------------------------------------------------------


def test_an_adapter_at_the_root_is_never_made_and_never_loaded(hub, whole, dataset, tmp_path):
    whole.save_pretrained(tmp_path / "run")
    whole.model.language_model.save_pretrained(tmp_path / "run")  # what PEFT would do
    for wrong in (
        lambda: AutoModel.from_pretrained(tmp_path / "run"),
        lambda: whole.model.save_pretrained(tmp_path / "run"),
    ):
        with pytest.raises(LKGError, match="at its root"):
            wrong()
    # beside the ranker on the Hub it would win, and no code of ours would be asked: the next push takes it away
    whole.push_to_hub(RANKER)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        put((tmp_path / "run" / name).read_bytes(), name)
    assert type(AutoModel.from_pretrained(RANKER)) is not LlamaRecLKGForRanking, "this is why"
    whole.model.push_to_hub(RANKER)
    again = AutoModel.from_pretrained(RANKER)
    assert same(logits(again, whole.processor, dataset), logits(whole.model, whole.processor, dataset))


def test_modules_to_save_keep_preferences_on_both_ways(whole, dataset, tmp_path):
    plain = ranker(whole.processor, adapter=False)
    wanted = logits(plain, whole.processor, dataset)
    wrapped = get_peft_model(
        plain, LoraConfig(target_modules=["q_proj"], modules_to_save=["preference", "fusion", "readout"])
    )
    wrapped.save_pretrained(tmp_path / "peft")
    fresh = LlamaRecLKGForRanking.from_backbone(BACKBONE, whole.processor.model_config(), dtype=torch.float32)
    again = PeftModel.from_pretrained(fresh, tmp_path / "peft").eval()
    assert same(logits(again, whole.processor, dataset), wanted)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert same(logits(AutoModel.from_pretrained(tmp_path / "merged"), whole.processor, dataset), wanted)


def test_our_trainer_refuses_a_wrapped_model(whole):
    wrapped = get_peft_model(ranker(whole.processor, adapter=False), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(LKGError, match="is a PeftModel.*add_adapter"):
        LlamaRecLKGTrainer(wrapped, processing_class=whole.processor)


def test_the_ordinary_trainer_saves_all_of_it(whole, dataset, tmp_path):
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True)
    trainer = Trainer(whole.model, args, processing_class=whole.processor)
    trainer.save_model(tmp_path / "saved")
    again = Recommender.from_pretrained(tmp_path / "saved")
    found = logits(again.model, again.processor, dataset, known=True)
    assert same(found, logits(whole.model, whole.processor, dataset, known=True))


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("lost", ["preference.", "fusion."])
def test_weights_without_preferences_are_an_error(hub, whole, tmp_path, kind, lost):
    model = whole.model if kind == "adapter" else whole.model.merge_adapter()
    model.push_to_hub(RANKER)
    (tmp_path / "w").write_bytes(uploaded(hub)["model.safetensors"])
    kept = {name: value for name, value in load_file(tmp_path / "w").items() if not name.startswith(lost)}
    save_file(kept, tmp_path / "w", metadata={"format": "pt"})
    put((tmp_path / "w").read_bytes(), "model.safetensors")
    with pytest.raises(LKGError, match=f"{lost.rstrip('.')}"):
        AutoModel.from_pretrained(RANKER)


def test_an_adapter_that_did_not_come_along_is_an_error(hub, whole):
    whole.model.push_to_hub(RANKER)
    HfApi().delete_file("adapter/adapter_model.safetensors", RANKER)
    with pytest.raises(OSError, match="adapter/adapter_model.safetensors"):
        AutoModel.from_pretrained(RANKER)


def test_a_push_does_not_ask_whether_the_tables_of_a_processor_are_meant(hub, whole):
    """The client warns of every parquet file in a model's repository; these belong there."""
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        whole.push_to_hub(RANKER)
        again = HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="x.parquet", repo_id=RANKER)
    told = [str(warning.message) for warning in heard if "data file" in str(warning.message)]
    assert again and len(told) == 1 and "(x.parquet)" in told[0], "of others it still warns"
    assert warnings.filters == before


# -- downloads that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "match, how",
    [
        ("HEAD */model.safetensors", "500"),
        ("HEAD */nodes.parquet", "reset"),
        ("GET */lfs/*", "reset"),
        ("GET */lfs/*", "cut"),
        ("HEAD */config.json", "401"),
        ("HEAD */items.parquet", "429"),
    ],
)
def test_a_download_that_fails_is_told_or_passes_and_the_next_one_succeeds(hub, whole, match, how):
    whole.push_to_hub(RANKER)
    failure = hub.fail(match, how, times=None)
    with pytest.raises((LKGError, OSError)) as caught:
        Recommender.from_pretrained(RANKER)
    assert failure.happened and RANKER.split("/")[1] in str(caught.value)
    failure.times = failure.happened
    again = Recommender.from_pretrained(RANKER)
    assert again.recommend(["1"], candidates=["2", "3"])


# -- a Hub that does not answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "match, said",
    [
        ("GET /api/whoami-v2", "Whose 'ranker' is to be could not be found out"),
        ("POST /api/repos/create", "could not be opened for writing"),
        ("GET /api/models/tester/ranker", "could not be opened for writing"),
        ("GET */tree/*", "tester/ranker"),
        ("POST */preupload/*", "could not be pushed to 'tester/ranker'"),
        ("PUT *", "could not be pushed to 'tester/ranker'"),
        ("POST */commit/*", "could not be pushed to 'tester/ranker'"),
    ],
)
def test_a_push_to_a_hub_that_never_answers_ends_in_an_error(hub, whole, monkeypatch, match, said):
    """The client waits for ever for all of these."""
    monkeypatch.setattr("llamarec_lkg.utils.hub.ANSWER_TIMEOUT", 0.3)
    hub.fail(match, "timeout", times=None, seconds=10)
    start = time.monotonic()
    with pytest.raises(LKGError, match=f"(?s){said}.*timed out.*hf auth"):
        whole.push_to_hub("ranker", private=True)
    assert time.monotonic() - start < 8
    hub.heal()
    whole.push_to_hub(RANKER, private=True)
    left = [hook for hook in get_session().event_hooks["request"] if hook.__module__.startswith("llamarec_lkg")]
    assert not left, "the client is as it was"
