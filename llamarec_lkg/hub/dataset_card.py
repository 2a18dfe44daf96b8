"""The card of a data set: what was written, where it comes from and under which terms, rendered by a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import DatasetCard as HubDatasetCard
from huggingface_hub import DatasetCardData

from ..data.raw_dataset import join_sources
from ..utils.hub import template_text


HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc
    lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa
    odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl
    zlib
    """.split()
)
"""The Hub's names for licences (https://huggingface.co/docs/hub/repositories-licenses), which it checks cards against.
Any other text is a licence of its own, which cards call "other"."""


@dataclass(frozen=True)
class TableInfo:
    name: str
    rows: int
    bytes: int
    columns: str


@dataclass(frozen=True)
class DatasetCard:
    """
    Args:
        dataset_id: name on the Hub, or of the folder: what the snippets load.
        privacy: what was done with user ids.
        relations: how many triples there are of each.
        changed: how many interactions are not as they came, by what about them ([`Ledger`]).
    """

    dataset_id: str
    pretty_name: str
    tables: tuple[TableInfo, ...]
    privacy: str
    num_users: int = 0
    relations: dict[str, int] | None = None
    licenses: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()
    language: str | None = None
    tags: tuple[str, ...] = ()
    changed: Mapping[str, int] = field(default_factory=dict)

    def to_hub_card(self) -> HubDatasetCard:
        """The rendered card with its metadata, as `huggingface_hub` knows it."""
        source = {"citation": join_sources(*self.citations), "license": join_sources(*self.licenses)}
        source = {key: text for key, text in source.items() if text}
        data = DatasetCardData(
            pretty_name=self.pretty_name,
            language=self.language,
            **license_metadata(self.licenses),
            size_categories=[size_category(max(table.rows for table in self.tables))],
            task_categories=["text-ranking"],
            tags=["recommendation", "sequential-recommendation", "knowledge-graph", "llamarec-lkg", *self.tags],
            configs=[
                {"config_name": table.name, "data_files": [{"split": "train", "path": f"{table.name}.parquet"}]}
                for table in self.tables
            ],
            # `datasets` checks the number of rows, and hands citation and licence on to whoever loads; they stand once
            dataset_info=[
                {
                    "config_name": table.name,
                    "splits": [{"name": "train", "num_bytes": table.bytes, "num_examples": table.rows}],
                    **(source if table is self.tables[0] else {}),
                }
                for table in self.tables
            ],
        )
        template, names = template_text("dataset_card.md.j2"), [table.name for table in self.tables]
        return HubDatasetCard.from_template(data, template_str=template, card=self, names=names)


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    names = [f"{number}{unit}" for unit in "KMB" for number in (1, 10, 100)] + ["1T"]
    digits = min(len(str(rows)), 13)
    return "n<1K" if digits < 4 else "n>1T" if digits == 13 else f"{names[digits - 4]}<n<{names[digits - 3]}"


def license_metadata(licenses: Sequence[str]) -> dict[str, str | list[str]]:
    """What a card's metadata say of the licences that hold together: `license`, and `license_name` where a single one
    that the Hub has no name for is one word."""
    own = [text for text in licenses if text.lower() not in HUB_LICENSES]
    ids = list(dict.fromkeys("other" if text in own else text.lower() for text in licenses))
    named = len(own) == 1 and re.fullmatch(r"[A-Za-z0-9.+-]+", own[0])
    return {"license": ids if len(ids) > 1 else (ids or ["unknown"])[0], **({"license_name": own[0]} if named else {})}
