"""Which files make a saved folder or a repository, by part.

```text
config.json                       the model's
model.safetensors                 its weights (or model-*-of-*.safetensors with an index)
adapter/                          its adapters, as PEFT writes them
processor_config.json, items.parquet, tokenizer files, knowledge_graph/
retriever/                        the first stage
private/                          what is about people: user table and weights, where they were asked for (pushed with
                                  `share_users=True` alone), and what an evaluation found for each user (never pushed)
modeling_llamarec_lkg_hub.py      for `trust_remote_code=True`
```
"""

from __future__ import annotations

from pathlib import Path

from ..utils.files import atomic_file
from ..utils.hub import RULES_FILE, template_text


MODEL_TYPE = "llamarec_lkg"
CARD_FILE, CARD_FACTS, REPORT_FILE = "README.md", "card.json", "report.json"

CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_FOLDER, ADAPTER_FILES = "adapter", ("adapter_config.json", "adapter_model.safetensors")
PROCESSOR_FILE, ITEMS_FILE = "processor_config.json", "items.parquet"
GRAPH_FOLDER, GRAPH_FILES = "knowledge_graph", ("graph.json", "graph.safetensors", "nodes.parquet")
TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
                   "tokenizer*.model", "spiece.model", "sentencepiece*.model", "*.tiktoken", "chat_template.*",
                   "additional_chat_templates/*")  # fmt: skip
RETRIEVER_FOLDER = "retriever"

PRIVATE_FOLDER = "private"
USERS_FILE, USER_EMBEDDING_FILE = f"{PRIVATE_FOLDER}/users.parquet", f"{PRIVATE_FOLDER}/user_embedding.safetensors"
USER_EMBEDDING = "preference.user_embedding.weight"
"""The one tensor of `USER_EMBEDDING_FILE`."""

PARTS = {
    "model": (CONFIG_FILE, "generation_config.json", WEIGHTS_FILE, WEIGHTS_INDEX, "model-*-of-*.safetensors",
              *(f"{ADAPTER_FOLDER}/{name}" for name in ADAPTER_FILES),
              *(f"{ADAPTER_FOLDER}/*/{name}" for name in ADAPTER_FILES)),
    "processor": (PROCESSOR_FILE, ITEMS_FILE, *TOKENIZER_FILES, *(f"{GRAPH_FOLDER}/{name}" for name in GRAPH_FILES)),
    "retriever": (f"{RETRIEVER_FOLDER}/{CONFIG_FILE}", f"{RETRIEVER_FOLDER}/{WEIGHTS_FILE}"),
}  # fmt: skip
"""The files of each part of a repository, as patterns; everything else in a folder stays there."""

PART_MARKS = {"model": CONFIG_FILE, "processor": PROCESSOR_FILE, "retriever": f"{RETRIEVER_FOLDER}/{CONFIG_FILE}"}
"""The file by which each part is known to be there."""

PRIVATE_PARTS = {"model": (USER_EMBEDDING_FILE,), "processor": (USERS_FILE,), "retriever": ()}
"""The files about people that belong to each part, and are pushed only with `share_users=True`."""

ROOT_ADAPTER = (*ADAPTER_FILES, "adapter_model.bin")
"""Beside `config.json` these make `AutoModel` load the adapter's backbone without preferences: never pushed."""

SHIM = "modeling_llamarec_lkg_hub"
MODEL_MAP = {"AutoConfig": f"{SHIM}.LlamaRecLKGConfig", "AutoModel": f"{SHIM}.LlamaRecLKGForRanking"}
PROCESSOR_MAP = {"AutoProcessor": f"{SHIM}.LlamaRecLKGProcessor"}
"""What `trust_remote_code=True` runs: a file that imports the installed package, or says how to install it."""


def write_shim(folder: str | Path) -> None:
    """Write the file that `MODEL_MAP` and `PROCESSOR_MAP` name."""
    (Path(folder) / f"{SHIM}.py").write_text(template_text(f"{SHIM}.py.j2"), encoding="utf-8")


def ignore_private(folder: str | Path) -> None:
    """Have the `.gitignore` of a folder name `private/`, and checkpoints, whose optimiser has a row for each user, so
    that git and uploads of the whole folder (`upload_folder`, `hf upload`, `transformers.Trainer.push_to_hub`) leave
    them alone. Its other lines stay."""
    path = Path(folder) / RULES_FILE
    rules = path.read_text(encoding="utf-8") if path.exists() else ""
    if new := [line for line in (f"{PRIVATE_FOLDER}/", "checkpoint*/") if line not in rules.splitlines()]:
        with atomic_file(path) as temporary:
            temporary.write_text("\n".join([rules.rstrip(), *new, ""]).lstrip(), encoding="utf-8")
