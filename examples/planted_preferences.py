"""Do the preferences learn? A world with planted preferences, and every route of the gradient alone and together.

Needs: pip install -e .

    python examples/planted_preferences.py --seeds 0 1 2

Users of the planted world (`llamarec_lkg/graph/planted_world.py`) choose items along relations that only they know.
The ranker sees histories, attributes and choices, never the relations. Printed for each variant: how often the top
relation of the learned preferences is the planted one, for users with training lists (known) and without (new); how
far learned and planted weights of mixed users are apart (total variation); and NDCG@10 beside an oracle that knows the
truth.

    both       evidence fusion and path gate
    evidence   evidence fusion alone, no language model
    gate       path gate alone: the loss of a small language model reaches the preferences through its attention
    cut        as released: an id table that picks paths for the prompt, and no gradient reaches it
    no-graph   both routes, on a graph without edges

In the default world counting the ties of a history would do as well, and the evidence's half-life says that users look
at the last item: the question is whether the loss of the choices gets there, by each route. `--history-length 4
--strength 2 --noise 0.2 --half-life 1` is a harder world.

The language model is a Llama of two layers with random weights: what matters here is whether its loss reaches the
preferences, not what it knew before. `outputs/planted/report.json` holds the means over seeds, and each seed's values.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from llamarec_lkg import (
    LlamaRecLKGConfig,
    LlamaRecLKGForRanking,
    LlamaRecLKGProcessor,
    LlamaRecLKGTrainer,
    LlamaRecLKGTrainingArguments,
)
from llamarec_lkg.evaluation.metrics import mean_metrics, target_ranks
from llamarec_lkg.graph.planted_world import PlantedWorld, PlantedWorldSettings
from llamarec_lkg.graph.statistics import STATISTICS
from llamarec_lkg.ranking.configuration_llamarec_lkg import LETTERS
from llamarec_lkg.ranking.prompts import INSTRUCTIONS
from llamarec_lkg.ranking.scoring import ranker_scores
from llamarec_lkg.training.warm_up import heads_batch
from llamarec_lkg.utils.files import write_json
from llamarec_lkg.utils.fingerprints import as_plain


VARIANTS = ("both", "evidence", "gate", "cut", "no-graph")
# users look at the last item, so evidence follows it alone: known beforehand; the language model speaks for itself,
# without a first stage
PROMPT = {"history_length": 2, "num_paths": 1, "max_title_tokens": 4, "max_length": 512, "evidence_half_life": 0.25}
MODEL = {"use_retrieval_scores": False, "use_letter_prior": False, "evidence_weight": 0.3}
SWITCHES = {
    "both": {},
    "no-graph": {},
    "evidence": {"use_language_model": False, "use_path_gate": False},
    "gate": {"use_evidence_fusion": False, "learn_lm_scale": False, "lm_scale": 1.0},
}


def word_tokenizer(world: PlantedWorld) -> PreTrainedTokenizerFast:
    """One token a word; the world's words are all it knows."""
    words = pre_tokenizers.Whitespace()
    texts = ["### History: ### Next: ### Paths: ### Candidates: ### Response: () [] ->", " ".join(LETTERS)]
    texts += INSTRUCTIONS.values()
    texts += [*world.item_ids, *world.relations, "The user rated the 1.0 stars."]
    vocabulary = {"<pad>": 0, "<unk>": 1}
    for text in texts:
        for word, _ in words.pre_tokenize_str(text):
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = words
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def small_llama(vocabulary: int) -> torch.nn.Module:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=vocabulary, **sizes, max_position_embeddings=1024, pad_token_id=0)
    )


def build(variant: str, world: PlantedWorld) -> tuple[LlamaRecLKGForRanking, LlamaRecLKGProcessor]:
    """An untrained ranker and its processor. New users' ids are beyond those the processor knows."""
    graph = world.graph()
    if variant == "no-graph":
        graph = graph.without_relations(graph.relations)
    count = world.settings.num_candidates
    known = world.user_ids[: world.num_known_users]
    make = {"tokenizer": word_tokenizer(world), "knowledge_graph": graph, "item_ids": world.item_ids}
    make |= {"titles": world.item_ids, "user_ids": known}
    if variant == "cut":
        shorter = {"num_candidates": count, "history_length": PROMPT["history_length"], "max_length": 512}
        config = LlamaRecLKGConfig.paper(list(world.relations), len(known), **shorter)
        processor = LlamaRecLKGProcessor.from_config(config, **make)
    else:
        processor = LlamaRecLKGProcessor(**make, num_candidates=count, **PROMPT)
        config = processor.model_config(**{**MODEL, **SWITCHES[variant]})
    torch.manual_seed(world.settings.seed)
    if not config.use_language_model:
        return LlamaRecLKGForRanking(config), processor
    model = LlamaRecLKGForRanking.from_backbone(small_llama(len(processor.tokenizer)), config)
    if variant == "cut":  # ours start at zero; as released, the table and what reads it start at random
        torch.nn.init.normal_(model.preference.user_out.weight)
    return model, processor


def top1(preferences: np.ndarray, truth: np.ndarray) -> float:
    """How often the largest preference is the planted one; of several equally large ones each is as good a guess."""
    largest = preferences == preferences.max(1, keepdims=True)
    return float((largest[np.arange(len(truth)), truth.argmax(1)] / largest.sum(1)).mean())


def run(variant: str, world: PlantedWorld, steps: int, folder: Path, progress: bool = True) -> dict[str, float]:
    """Train one variant and measure it."""
    started = time.monotonic()
    model, processor = build(variant, world)
    args = LlamaRecLKGTrainingArguments(
        output_dir=str(folder / variant),
        max_steps=steps,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        heads_learning_rate=1e-2,
        heads_weight_decay=0.01,
        weight_decay=0.01,
        heads_warm_up_epochs=20,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=not progress,
        seed=world.settings.seed,
    )
    trainer = LlamaRecLKGTrainer(model, args, world.lists("train"), None, processor)
    if model.config.use_language_model:
        trainer.train()
    else:
        trainer.warm_up_heads()
    return measure(model, processor, world, progress) | {"seconds": time.monotonic() - started}


def measure(model, processor, world: PlantedWorld, progress: bool = True) -> dict[str, float]:
    """Top-1 over users with one relation, total variation over the mixed ones, NDCG@10 over all."""
    result, ndcg, oracle = {}, [], []
    for part in ("known", "new"):
        lists = world.lists(part)
        users = np.array([example.user for example in lists]) - 1
        truth, mixed = world.preferences[users], world.is_mixed[users]
        with torch.inference_mode():
            preferences = model.eval().preferences(heads_batch(processor, lists, progress=False)).cpu().numpy()
        labels = np.array([example.label for example in lists])
        scores = ranker_scores(model, processor, lists, batch_size=64, description=f"rank {part}", progress=progress)
        values = [mean_metrics(target_ranks(s, labels))["ndcg@10"] for s in (scores, world.oracle_scores(lists))]
        ndcg.append(values[0] * len(lists))
        oracle.append(values[1] * len(lists))
        result[f"{part}_top1"] = top1(preferences[~mixed], truth[~mixed])
        result[f"{part}_mixture_tv"] = float(np.abs(preferences[mixed] - truth[mixed]).sum(1).mean() / 2)
        result[f"{part}_ndcg_to_oracle"] = values[0] / values[1]
    return {**result, "ndcg_to_oracle": sum(ndcg) / sum(oracle)}


def counted(world: PlantedWorld) -> dict[str, float]:
    """What counting would find: the relation along which most steps of the history are tied, nothing learned."""
    _, processor = build("evidence", world)
    result = {}
    for part in ("known", "new"):
        lists = [example for example in world.lists(part) if not world.is_mixed[example.user - 1]]
        statistics = processor.evidence_index.statistics([example.history for example in lists])
        tied = statistics[..., STATISTICS.index("tied")]
        result[f"{part}_top1"] = top1(tied, world.preferences[[example.user - 1 for example in lists]])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Planted preferences, and what each variant finds of them.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--users", type=int, default=PlantedWorldSettings.num_users)
    parser.add_argument("--relations", type=int, default=PlantedWorldSettings.num_relations)
    parser.add_argument("--noise", type=float, default=PlantedWorldSettings.noise)
    parser.add_argument("--mixing", choices=["utility", "turns"], default=PlantedWorldSettings.mixing)
    parser.add_argument("--history-length", type=int, default=PlantedWorldSettings.history_length)
    parser.add_argument("--strength", type=float, default=PlantedWorldSettings.strength)
    parser.add_argument(
        "--half-life", type=float, default=PROMPT["evidence_half_life"], help="of the evidence, in items"
    )
    parser.add_argument("--steps", type=int, default=150, help="of the small language model, 64 lists each")
    parser.add_argument("--output", type=Path, default=Path("outputs/planted"))
    args = parser.parse_args()
    settings = {"num_users": args.users, "num_relations": args.relations, "noise": args.noise, "mixing": args.mixing}
    settings |= {"history_length": args.history_length, "strength": args.strength}
    PROMPT["evidence_half_life"] = args.half_life
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in args.variants}
    counts = []
    for seed in args.seeds:
        world = PlantedWorld.generate(PlantedWorldSettings(**settings, seed=seed))
        new, mixed = args.users - world.num_known_users, int(world.is_mixed.sum())
        print(f"world {seed}: {world.num_known_users:,} known users, {new:,} new, {mixed:,} of all mixed", flush=True)
        counts.append(counted(world))
        print(f"{'counting':<10}", {k: round(v, 3) for k, v in counts[-1].items()}, flush=True)
        for variant in args.variants:
            found[variant].append(run(variant, world, args.steps, args.output / f"seed-{seed}"))
            print(f"{variant:<10}", {k: round(v, 3) for k, v in found[variant][-1].items()}, flush=True)
    variants = {name: {k: float(np.mean([row[k] for row in rows])) for k in rows[0]} for name, rows in found.items()}
    report = {"world": {**as_plain(world.settings), "seed": args.seeds}, "half_life": args.half_life}
    report |= {"variants": variants, "counting": {k: float(np.mean([row[k] for row in counts])) for k in counts[0]}}
    write_json(args.output / "report.json", {**report, "seeds": found})
    columns = ["known_top1", "new_top1", "ndcg_to_oracle", "known_mixture_tv", "new_mixture_tv", "seconds"]
    print("\n| variant | " + " | ".join(columns) + " |\n|" + " --- |" * (1 + len(columns)))
    for name, row in variants.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.3f}" for column in columns) + " |")
    known = {column: f"{value:.3f}" for column, value in report["counting"].items()}
    print("| counting ties | " + " | ".join(known.get(column, "") for column in columns) + " |")
    print(f"\nwritten to {args.output / 'report.json'}")


if __name__ == "__main__":
    main()
