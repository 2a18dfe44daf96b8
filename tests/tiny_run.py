"""A whole run in miniature: a data set of forty users as tables, and the configuration of a run over it."""

import numpy as np
import pandas as pd


def write_world(folder):
    """40 users walk through 30 items; directors and genres tie neighbours together."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(1, 41):
        start = int(generator.integers(0, 30))
        for step in range(9):
            rows.append((user, (start + step * int(generator.integers(1, 3))) % 30 + 1, step, 4.0))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating"])
    frame = frame.drop_duplicates(["user_id", "item_id"])
    items = pd.DataFrame({"item_id": range(1, 31), "title": [f"Film {n}" for n in range(1, 31)]})
    items["directed_by"] = [f"Director {n // 3}" for n in range(30)]
    items["genre"] = [f"Genre {n % 4}|Genre {n % 3}" for n in range(30)]
    triples = pd.DataFrame({"head": range(1, 30), "relation": "FOLLOWED_BY", "tail": range(2, 31)})
    folder.mkdir()
    frame.to_parquet(folder / "interactions.parquet")
    items.to_csv(folder / "items.csv", index=False)
    triples.to_csv(folder / "triples.csv", index=False)


def settings(folder, **training):
    return {
        "output_dir": str(folder / "run"),
        "data": {"dataset": str(folder / "world")},
        "preprocessing": {"min_user_interactions": 3, "min_item_interactions": 1},
        "retriever": {
            "hidden_size": 16,
            "max_steps": 40,
            "eval_steps": 20,
            "learning_rate": 0.01,
            "lr_scheduler_type": "one_cycle",
        },
        "examples": {"folds": 2, "max_train": 12, "max_validation": 8},
        "graph": {"co_rating_min_people": 2},
        "prompt": {"num_candidates": 8, "history_length": 3, "num_paths": 2, "max_title_tokens": 8},
        "backbone": {"model_name_or_path": str(folder / "backbone"), "dtype": "float32", "lora_r": 2},
        "training": {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            **training,
        },
        "evaluation": {"batch_size": 8, "resamples": 100, "controls": ["shuffled-kg"]},
    }
