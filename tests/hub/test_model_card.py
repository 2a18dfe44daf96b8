"""The model card: the Hub's own checks, every figure of the report in its metadata, and snippets that run."""

import re
import shutil
from dataclasses import replace
from math import nan

import pytest
import yaml
from hub_stand_in.world import uploaded
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from peft import IA3Config, LoraConfig
from tiny import backbone, examples, model, processor, tokenizer
from tiny_run import settings, write_world

from llamarec_lkg import (
    LKGError,
    LlamaRecLKGForRanking,
    LlamaRecLKGTrainer,
    LlamaRecLKGTrainingArguments,
    Recommender,
)
from llamarec_lkg.cli import main
from llamarec_lkg.evaluation.report import Report
from llamarec_lkg.hub.model_card import MARK, read_emissions
from llamarec_lkg.hub.model_card import ModelCard as Card
from llamarec_lkg.hub.push import push_folder
from llamarec_lkg.training.run_config import RunConfig
from llamarec_lkg.training.workflow import Workflow
from llamarec_lkg.utils.files import read_json, write_json
from llamarec_lkg.utils.hub import SMOLLM2_NAME


pytestmark = pytest.mark.hub

REPO = "tester/films"
EMISSIONS = {"emissions": 12.5, "source": "measured", "hardware_used": "one laptop"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the command line, with what only its user knows about the card."""
    folder = tmp_path_factory.mktemp("carded")
    write_world(folder / "world")
    backbone().save_pretrained(folder / "backbone")
    tokenizer().save_pretrained(folder / "backbone")
    content = settings(folder)
    content["evaluation"] |= {"second_seed": False, "resamples": 50}
    content["card"] = {"license": "apache-2.0", "tags": ["films"], "emissions": EMISSIONS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMAREC_LKG_CACHE", str(folder / "cache"))
        workflow = Workflow(RunConfig.from_mapping(content), progress=False)
        workflow.evaluate()
    return workflow.folder


def card_of(folder, **changes):
    report = Report(**read_json(folder / "report.json"))
    return replace(Card(**read_json(folder / "card.json")), report=report, **changes)


def snippets(card):
    return re.findall(r"^```python\n(.*?)^```$", str(card), re.DOTALL | re.MULTILINE)


def run_snippets(card):
    """Each by itself, as someone who copies it."""
    for code in snippets(card):
        exec(compile(code, "the card", "exec"), {})


def trainer(proc, tmp_path, ranker=None, **extra):
    args = LlamaRecLKGTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    return LlamaRecLKGTrainer(ranker or model(proc), args, None, None, proc, **extra)


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset).fit(examples(film_dataset))


# -- snippets


def test_every_snippet_of_a_pushed_card_runs(run, hub, capsys):
    backbone().push_to_hub("tester/base")
    push_folder(run, REPO, backbone="tester/base")
    pushed = ModelCard.load(REPO)
    assert len(snippets(pushed)) == 2 and all(f'from_pretrained("{REPO}")' in code for code in snippets(pushed))
    assert f'load_adapter("{REPO}"' in pushed.text
    run_snippets(pushed)
    printed = capsys.readouterr().out
    assert printed.count("Film") >= 5 and "tensor(" in printed
    assert len(hub.calls("GET */lfs/*")) >= 3, "weights came from the Hub"


def test_the_snippets_of_a_local_card_run_where_it_was_made(run, capsys):
    run_snippets(ModelCard.load(run / "README.md"))
    assert "tensor(" in capsys.readouterr().out


def test_the_snippets_of_a_card_without_retriever_run(proc, tmp_path, capsys):
    done = trainer(proc, tmp_path)
    done.save_model(str(tmp_path / "saved"))
    card = Card.from_trainer(done, model_id=str(tmp_path / "saved")).to_hub_card()
    assert "candidates=items[2:5]" in snippets(card)[0]
    run_snippets(card)
    assert "tensor(" in capsys.readouterr().out


def test_the_snippets_of_a_card_without_language_model_run(proc, tmp_path, capsys):
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
    done = trainer(proc, tmp_path, ranker)
    done.save_model(str(tmp_path / "saved"))
    card = Card.from_trainer(done, model_id=str(tmp_path / "saved"))
    assert "without a language model" in str(card.to_hub_card()) and card.to_hub_card().data.base_model is None
    run_snippets(card.to_hub_card())
    assert "tensor(" in capsys.readouterr().out


# -- metadata


def test_the_hub_accepts_the_card(run, hub):
    for card in (ModelCard.load(run / "README.md"), card_of(run, model_id=REPO).to_hub_card()):
        card.validate()
        assert yaml.safe_load(str(card.data)) == card.data.to_dict()
    assert len(hub.calls("POST /api/validate-yaml")) == 2
    with pytest.raises(ValueError, match="known licenses"):
        card_of(run, license="mine").to_hub_card().validate()


def test_every_metric_of_every_row_is_in_the_metadata_with_its_interval(run):
    report = Report(**read_json(run / "report.json"))
    data = ModelCard.load(run / "README.md").data.to_dict()
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == str(run)
    found = {(result.metric_args["row"], result.metric_type): result for result in results}
    rows = [row for row in report.rows if row["name"] != "ceiling"]  # no system
    assert len(found) == len(results) == sum(len(row["metrics"]) for row in rows) and len(rows) < len(report.rows)
    assert {"ranker", "retriever", "ranker-shuffled-kg", "ranker-no-lm", "ranker-no-lm-no-kg"} <= {
        name for name, _ in found
    }
    for row in rows:
        for metric, value in row["metrics"].items():
            result = found[row["name"], metric]
            assert result.metric_value == pytest.approx(value, abs=1e-5)
            assert result.metric_args["ci95"] == pytest.approx(row["ci95"][metric], abs=1e-5)
            assert (result.dataset_name, result.dataset_split) == (report.protocol["dataset"], "test")
            assert result.dataset_args == {k: report.protocol[k] for k in ("targets", "retrieved")}
            if row["name"] == "retriever":
                assert "minus_retriever" not in result.metric_args
            else:
                difference = row["difference_to_retriever"][metric]
                assert result.metric_args["minus_retriever"] == pytest.approx(difference, abs=1e-5)
    first = results[: len(report.rows[0]["metrics"])]
    assert all(result.metric_args["row"] == "ranker" for result in first), "what a reader of one figure takes"
    assert results[0].metric_name == results[0].metric_type.upper()
    assert any(result.metric_name == "NDCG@10 (ranker-no-lm-no-kg)" for result in results)
    assert data["metrics"] == ["mrr", "ndcg", "recall"]


@pytest.mark.parametrize("name", ["card.json", "report.json"])
def test_a_file_of_another_version_is_told_before_a_push(run, hub, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    write_json(folder / name, {**read_json(folder / name), "newer": 1})
    with pytest.raises(LKGError, match=f"{name} is not of this version .*'newer'.*or delete the file"):
        push_folder(folder, REPO, backbone="you/base")
    assert not hub.exists(REPO)


def test_what_only_the_user_knows_is_on_the_card(run):
    card = ModelCard.load(run / "README.md")
    assert card.data.license == "apache-2.0" and "films" in card.data.tags
    assert card.data.co2_eq_emissions == EMISSIONS
    assert "Carbon: 12.5 g CO2 equivalent (measured)." in card.text
    assert "under the licence `apache-2.0`" in card.text and "No licence was stated" not in card.text
    assert {"peft", "lora", "recommendation", "knowledge-graph"} <= set(card.data.tags)
    assert (card.data.library_name, card.data.pipeline_tag) == ("llamarec_lkg", "text-ranking")
    assert "LORA (rank 2; alpha 32; dropout 0.05; on q_proj, v_proj)" in card.text
    assert "| ranker |" in card.text and "| ranker-no-lm-shuffled-kg |" in card.text and "FOLLOWED_BY" in card.text
    assert "2311.02089" in card.text and "2506.07449" in card.text


def test_a_changed_card_section_takes_effect_without_training_again(run, monkeypatch):
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["card"] |= {"license": "mit", "emissions": 3}
    monkeypatch.setattr("llamarec_lkg.training.trainer.LlamaRecLKGTrainer", None)
    before = (run / "README.md").read_text(), (run / "card.json").read_text()
    try:
        Workflow(RunConfig.from_mapping(content), progress=False).evaluate()
        card = ModelCard.load(run / "README.md")
        assert card.data.license == "mit" and card.data.co2_eq_emissions == {"emissions": 3}
        assert card.data.eval_results
    finally:
        (run / "README.md").write_text(before[0])
        (run / "card.json").write_text(before[1])


def test_base_model_and_relation_say_what_the_repository_holds():
    def data(**fields):
        return Card("you/x", **fields).to_hub_card().data.to_dict()

    lora = {"adapter": "LORA (rank 8; on q_proj)"}
    assert (data(base_model="meta-llama/Llama-2-7b-hf", **lora)["base_model"]) == "meta-llama/Llama-2-7b-hf"
    assert data(base_model="meta-llama/Llama-2-7b-hf", **lora)["base_model_relation"] == "adapter"
    assert data(base_model="meta-llama/Llama-2-7b-hf")["base_model_relation"] == "finetune"
    assert data(base_model=SMOLLM2_NAME, **lora)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for name in (None, "/home/me/models/llama", "./models/llama", "a-name"):
        assert "base_model" not in data(base_model=name) and "base_model_relation" not in data(base_model=name)
    assert "base_model" not in data(base_model="you/base", uses_language_model=False)
    assert data(dataset_name="you/films")["datasets"] == ["you/films"]
    assert "datasets" not in data(dataset_name="ml-100k") and "co2_eq_emissions" not in data()
    assert "model-index" not in data()


def test_the_trainer_knows_its_adapter_and_its_numbers(proc, film_dataset, tmp_path):
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj"], task_type="CAUSAL_LM", use_dora=True)
    done = trainer(proc, tmp_path, peft_config=lora)
    card = Card.from_trainer(done)
    assert card.adapter == "LORA (rank 2; alpha 4; dropout 0.0; DoRA; on v_proj)"
    count = sum(p.numel() for p in done.model.parameters() if p.requires_grad)
    assert card.training["trained weights"] == f"{count:,}" and card.training["precision"] == "float32"
    assert "quantization" not in card.training and card.emissions is None and card.model_id == "out"
    ia3 = IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    assert Card.from_trainer(trainer(proc, tmp_path, peft_config=ia3)).adapter == "IA3 (on v_proj)"
    assert Card.from_trainer(trainer(proc, tmp_path)).adapter == ""
    assert "This model has not been evaluated." in str(card.to_hub_card())
    assert "No licence was stated" in str(card.to_hub_card())


# -- carbon


def write_emissions(folder, rows):
    columns = ["timestamp", "project_name", "emissions", "country_name", "region", "cpu_model", "gpu_model"]
    lines = [",".join(columns)] + [",".join(map(str, row)) for row in rows]
    folder.mkdir(exist_ok=True)
    (folder / "emissions.csv").write_text("\n".join(lines) + "\n")


def test_codecarbons_file_is_read_where_it_is(proc, tmp_path):
    done = trainer(proc, tmp_path)
    first = ["2026-01-01T00:00:00", "codecarbon", 0.0123, "Switzerland", "Zurich", "a CPU", "1 x a GPU"]
    write_emissions(tmp_path / "out", [first, [*first[:2], 0.002, *first[3:]]])
    card = Card.from_trainer(done)
    expected = {
        "emissions": 14.3,  # grams, of both rows: the run was resumed
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "geographical_location": "Zurich, Switzerland",
        "hardware_used": "1 x a GPU, a CPU",
    }
    assert card.emissions == expected
    assert card.to_hub_card().data.to_dict()["co2_eq_emissions"] == expected
    assert Card.from_trainer(done, emissions={"emissions": 1.0}).emissions == {"emissions": 1.0}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "emissions\n", "emissions\nmany\n"])
def test_a_file_that_is_not_codecarbons_does_not_spoil_a_finished_training(tmp_path, text):
    assert read_emissions(tmp_path) is None
    (tmp_path / "emissions.csv").write_text(text)
    assert read_emissions(tmp_path) is None


def test_unknown_places_are_left_out(tmp_path):
    write_emissions(tmp_path, [["t", "p", 0.001, "", "", "", ""]])
    assert read_emissions(tmp_path) == {"emissions": 1.0, "source": "codecarbon", "training_type": "fine-tuning"}


@pytest.mark.parametrize("given", [{"source": "me"}, {"emissions": "much"}, {"emissions": -1.0}, {"emissions": nan}])
def test_emissions_that_are_no_figure_are_refused(given):
    with pytest.raises(LKGError, match="grams of CO2 equivalent"):
        Card("x", emissions=given)


def test_a_card_survives_its_json(run):
    assert str(card_of(run).to_hub_card()) == (run / "README.md").read_text()


# -- pushes after pushes


def test_the_card_follows_the_run_by_whatever_way_it_is_pushed(run, hub, tmp_path):
    assert main(["push", str(run), REPO, "--backbone", "you/base"]) == 0
    recommender = Recommender.from_pretrained(run)
    recommender.push_to_hub(REPO, backbone="you/base")
    card = ModelCard.load(REPO)
    card.validate()
    assert card.data.eval_results[0].metric_args["row"] == "ranker" and card.data.model_name == REPO
    assert "\nworld, test split" in card.text, "of a folder of this machine only the name"
    assert not any(path in uploaded(hub, REPO) for path in ("report.json", "card.json"))
    recommender.model.fusion.evidence_weight.data.fill_(7.0)  # other weights: the figures are not about them
    recommender.push_to_hub(REPO, backbone="you/base")
    assert not ModelCard.load(REPO).data.eval_results and "has not been evaluated" in ModelCard.load(REPO).text
    shutil.copytree(run, tmp_path / "run")
    recommender.model.save_pretrained(tmp_path / "run", push_to_hub=True, repo_id=REPO, backbone="you/base")
    assert "Training" not in ModelCard.load(REPO).text and f'from_pretrained("{REPO}")' in ModelCard.load(REPO).text


def test_a_card_that_somebody_wrote_stays_and_that_is_said(run, hub, caplog):
    assert main(["push", str(run), REPO, "--backbone", "you/base"]) == 0
    text = ModelCard.load(REPO).content
    assert MARK in text and "there stays" not in caplog.text
    HfApi().upload_file(path_or_fileobj=text.replace(MARK, "Mine.").encode(), path_in_repo="README.md", repo_id=REPO)
    assert main(["push", str(run), REPO, "--backbone", "you/base"]) == 0
    assert "Mine." in ModelCard.load(REPO).content
    assert f"The card of '{REPO}' stays: somebody wrote it" in caplog.text


def test_terms_of_the_data_are_told_to_who_publishes(run, hub, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    write_json(folder / "card.json", {**read_json(folder / "card.json"), "data_license": "for research only"})
    for private in (True, None):
        push_folder(folder, f"tester/{private}", backbone="you/base", private=private)
        assert ("Their terms: for research only." in caplog.text) == (private is None)


def test_a_folder_that_is_not_there_is_named(hub, capsys):
    assert main(["push", "outputs/quickstrt", REPO]) == 1
    assert "There is no folder 'outputs/quickstrt' in" in capsys.readouterr().err
    assert not hub.calls("POST */repos/create")
