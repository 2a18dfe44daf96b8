"""What clients send and are sent, as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..reasons import Recommendation
from ..recommender import Recommender
from .options import ServerOptions


ID_LENGTH = 512


class Answer(BaseModel):
    """A ranked list, best first."""

    items: list[Recommendation]
    left_out: int = Field(description="ids that were passed over, as the model does not know them")


class Item(BaseModel):
    """What is known of an item."""

    item_id: str
    title: str
    relations: dict[str, list[str]] = Field(description="names that each relation of the graph leads to, the first 20")


RANKED = TypeAdapter(list[Recommendation])
_ITEM_ID = Annotated[str, Field(max_length=ID_LENGTH)]


def request_models(options: ServerOptions, recommender: Recommender) -> tuple[type[BaseModel], type[BaseModel]]:
    """The bodies of /recommend and /rank, with the bounds of a server, and examples of ids that it knows."""
    ids = recommender.item_ids

    class ListRequest(BaseModel):
        model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

        history: list[_ITEM_ID] = Field(
            max_length=options.max_history, description="item ids, oldest first", examples=[list(ids[:2])]
        )
        user: _ITEM_ID | None = Field(
            default=None, description="for a model that has weights of single users; unknown users are average"
        )
        num_reasons: int = Field(
            default=min(3, options.max_reasons),
            ge=0,
            le=options.max_reasons,
            description="paths to name for each; further reasons (other paths, retriever, ...) come in any case",
        )
        leave_out_unknown: bool = Field(default=False, description="pass over ids that the model does not know")

    class RecommendRequest(ListRequest):
        """Find items for a history."""

        k: int = Field(default=min(10, options.max_k), ge=1, le=options.max_k, description="how many to answer")
        repeats: Literal["allowed", "excluded"] | None = Field(
            default=None, description="whether the history may come again; by default as the ranker was trained"
        )

    class RankRequest(ListRequest):
        """Rank these items for a history."""

        candidates: list[_ITEM_ID] = Field(
            min_length=1, max_length=options.max_candidates, description="item ids", examples=[list(ids[2:5])]
        )
        k: int | None = Field(default=None, ge=1, description="how many to answer; by default all")

    return RecommendRequest, RankRequest


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """A body that can be sent."""
    fields = model.model_fields.items()
    return {name: field.examples[0] for name, field in fields if field.examples}
