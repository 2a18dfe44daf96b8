"""Which files make a saved folder or a repository, by part."""

from __future__ import annotations


RETRIEVER_FOLDER = "retriever"


MODEL_TYPE = "llamarec_lkg"


CONFIG_FILE, PROCESSOR_FILE, CARD_FILE = "config.json", "processor_config.json", "README.md"


ITEMS_FILE, USERS_FILE, WEIGHTS_FILE = "items.parquet", "users.parquet", "model.safetensors"


GRAPH_FOLDER = "knowledge_graph"


SHIM = "modeling_llamarec_lkg_hub"


ADAPTER_FOLDER, WEIGHTS_INDEX = "adapter", "model.safetensors.index.json"


GRAPH_FILES = ("graph.json", "graph.safetensors", "nodes.parquet")


TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
                   "tokenizer*.model", "spiece.model", "sentencepiece*.model", "*.tiktoken", "chat_template.*",
                   "additional_chat_templates/*")  # fmt: skip


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


PARTS = {
    "model": (CONFIG_FILE, "generation_config.json", WEIGHTS_FILE, WEIGHTS_INDEX, "model-*-of-*.safetensors",
              *(f"{ADAPTER_FOLDER}/{name}" for name in ADAPTER_FILES),
              *(f"{ADAPTER_FOLDER}/*/{name}" for name in ADAPTER_FILES)),
    "processor": (PROCESSOR_FILE, ITEMS_FILE, USERS_FILE, *TOKENIZER_FILES,
                  *(f"{GRAPH_FOLDER}/{name}" for name in GRAPH_FILES)),
    "retriever": (f"{RETRIEVER_FOLDER}/{CONFIG_FILE}", f"{RETRIEVER_FOLDER}/{WEIGHTS_FILE}"),
}  # fmt: skip
"""The files of each part of a repository, as patterns; everything else in a folder stays there."""


ROOT_ADAPTER = (*ADAPTER_FILES, "adapter_model.bin")
"""Beside `config.json` these make `AutoModel` load the adapter's backbone without preferences: never pushed."""


USER_WEIGHTS = "preference.user_"


MODEL_MAP = {"AutoConfig": f"{SHIM}.LlamaRecLKGConfig", "AutoModel": f"{SHIM}.LlamaRecLKGForRanking"}


PROCESSOR_MAP = {"AutoProcessor": f"{SHIM}.LlamaRecLKGProcessor"}
"""What `trust_remote_code=True` runs: a file that imports the installed package, or says how to install it."""
