"""A planted world: users whose taste in relations is known, to see whether a preference module finds it.

Items have attributes along several relations. At every step a user is offered a few items that are each tied to the
last one along one relation alone, among many that are not tied at all, and picks by a multinomial logit (McFadden,
1974): the utility of an item is `strength` times the user's weight of the relation it is tied along. The planted
preference is thus the same quantity that the evidence term of the ranker estimates, and an oracle that knows it ranks
best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.interactions import Interactions
from ..data.schema import DatasetBundle, ItemTable, RankingExample, Triples
from ..utils.errors import LKGError
from .knowledge_graph import KnowledgeGraph


@dataclass(frozen=True)
class PlantedWorldSettings:
    """
    Args:
        new_user_fraction: the last users are new: in no training list.
        mixture_fraction: of known and of new users, how many weigh several relations. The others follow one relation
            alone, each relation by equally many.
        mixture_size, mixture_concentration: how many relations a mixed user weighs, drawn at random; their weights are
            drawn from a symmetric Dirichlet distribution of that concentration.
        values_per_relation, values_per_item: each item has `values_per_item` of the `values_per_relation` entities of
            each relation.
        history_length: choices before the first list.
        train_lists: lists of each known user to train on. One more is for validation, and the last for test.
        num_candidates: one item tied along each relation, the rest not tied.
        strength: utility of a tie along a relation with weight 1.
        noise: how often a choice is made blindly among the candidates.
        mixing: "utility", or "turns": a mixed user weighs the relations in every choice, or follows one at a time,
            drawn anew at every step with the weights as probabilities.
    """

    num_users: int = 2000
    new_user_fraction: float = 0.2
    mixture_fraction: float = 0.25
    mixture_size: int = 2
    mixture_concentration: float = 3.0
    num_relations: int = 5
    num_items: int = 1000
    values_per_relation: int = 40
    values_per_item: int = 2
    history_length: int = 120
    train_lists: int = 12
    num_candidates: int = 20
    strength: float = 5.0
    noise: float = 0.1
    mixing: str = "utility"
    seed: int = 0


@dataclass(frozen=True)
class PlantedWorld:
    """A world and what is true in it. U users, R relations, T choices of each user, C candidates of each choice.

    Args:
        values (`np.ndarray`, shape (num_items, R, values_per_item)): entities of each item along each relation.
        preferences (`np.ndarray`, shape (U, R)): the planted weights; each row sums to 1.
        first_items (`np.ndarray`, shape (U,)): where each user starts; dense items.
        offers (`np.ndarray`, shape (U, T, C)): dense items to choose from at every step, in random order.
        choices (`np.ndarray`, shape (U, T)): index of the chosen item among the candidates.
    """

    settings: PlantedWorldSettings
    values: np.ndarray
    preferences: np.ndarray
    first_items: np.ndarray
    offers: np.ndarray
    choices: np.ndarray

    @classmethod
    def generate(cls, settings: PlantedWorldSettings) -> PlantedWorld:
        """Draw a world; the same settings give the same one.

        Raises:
            LKGError: the items cannot fill the offers: too few, or tied too often or too seldom.
        """
        generator = np.random.default_rng(settings.seed)
        values = _draw_values(settings, generator)
        preferences = _draw_preferences(settings, generator)
        ties = _ties(values)
        users = np.arange(settings.num_users)
        last = generator.integers(settings.num_items, size=len(users))
        first_items, free = last + 1, np.ones((len(users), settings.num_items), dtype=bool)
        free[users, last] = False
        offers, choices = [], []
        for _ in range(settings.history_length + settings.train_lists + 2):
            offer = _offer(ties, last, free, settings, generator)
            odds = np.zeros(offer.shape)
            odds[:, : settings.num_relations] = settings.strength * _relation_weights(preferences, settings, generator)
            odds = np.exp(odds - odds.max(1, keepdims=True))
            odds = (1 - settings.noise) * odds / odds.sum(1, keepdims=True) + settings.noise / offer.shape[1]
            chosen = (odds.cumsum(1) < generator.random((len(users), 1))).sum(1).clip(max=offer.shape[1] - 1)
            order = generator.permuted(np.broadcast_to(np.arange(offer.shape[1]), offer.shape), axis=1)
            offers.append(np.take_along_axis(offer, order, axis=1) + 1)
            choices.append((order == chosen[:, None]).argmax(1))
            last = offer[users, chosen]
            free[users, last] = False
        return cls(settings, values, preferences, first_items, np.stack(offers, 1), np.stack(choices, 1))

    @property
    def relations(self) -> tuple[str, ...]:
        return tuple(f"RELATION_{relation}" for relation in range(self.settings.num_relations))

    @property
    def num_known_users(self) -> int:
        """Dense users 1 to this number are known; the ids above are new."""
        return self.settings.num_users - round(self.settings.num_users * self.settings.new_user_fraction)

    @property
    def is_mixed(self) -> np.ndarray:
        """Which users weigh several relations, shape (U,)."""
        return self.preferences.max(axis=1) < 1.0

    @property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(f"item{item}" for item in range(1, self.settings.num_items + 1))

    @property
    def user_ids(self) -> tuple[str, ...]:
        return tuple(f"user{user}" for user in range(1, self.settings.num_users + 1))

    def sequences(self) -> np.ndarray:
        """Dense items of every user in order, shape (U, 1 + T)."""
        chosen = np.take_along_axis(self.offers, self.choices[:, :, None], axis=2)[:, :, 0]
        return np.concatenate([self.first_items[:, None], chosen], axis=1)

    def graph(self) -> KnowledgeGraph:
        """The attributes as a knowledge graph; it holds no interactions."""
        return KnowledgeGraph.from_triples(self.bundle().triples, self.item_ids)

    def bundle(self) -> DatasetBundle:
        """The world as a data set like any other: interactions of all users, one a second, items, and facts."""
        items, sequences = np.array(self.item_ids, dtype=object), self.sequences()
        head, relation, place = np.indices(self.values.shape).reshape(3, -1)
        entities = [f"r{r}v{v}" for r, v in zip(relation, self.values[head, relation, place], strict=True)]
        return DatasetBundle(
            name=f"planted-world-{self.settings.seed}",
            interactions=Interactions(
                users=np.repeat(np.array(self.user_ids, dtype=object), sequences.shape[1]),
                items=items[sequences.ravel() - 1],
                ratings=np.ones(sequences.size, dtype=np.float32),
                timestamps=np.tile(np.arange(sequences.shape[1]), len(sequences)),
            ),
            items=ItemTable(self.item_ids, self.item_ids),
            triples=Triples(
                heads=items[head],
                relations=np.array(self.relations, dtype=object)[relation],
                tails=np.array(entities, dtype=object),
                item_of_entity={raw: raw for raw in self.item_ids},
            ),
            license="made by a program; no rights are claimed",
        )

    def lists(self, part: str) -> list[RankingExample]:
        """The choices as lists to rank. There is no first stage: all retrieval scores are 0.

        Args:
            part: "train" and "validation" (known users' later choices), "known" and "new" (the last choice of each
                known and each new user).
        """
        last = self.choices.shape[1] - 1
        known = range(self.num_known_users)
        users, steps = {
            "train": (known, range(self.settings.history_length, last - 1)),
            "validation": (known, range(last - 1, last)),
            "known": (known, range(last, last + 1)),
            "new": (range(len(known), self.settings.num_users), range(last, last + 1)),
        }[part]
        sequences = self.sequences()
        return [
            RankingExample(
                user=user + 1,
                history=sequences[user, : step + 1],
                ratings=np.ones(step + 1, dtype=np.float32),
                candidates=self.offers[user, step],
                retrieval_scores=np.zeros(self.settings.num_candidates, dtype=np.float32),
                label=int(self.choices[user, step]),
            )
            for step in steps
            for user in users
        ]

    def oracle_scores(self, examples: Sequence[RankingExample]) -> np.ndarray:
        """What somebody who knows the users' weights and the attributes would score the candidates with, shape (N,
        C)."""
        users = np.array([example.user for example in examples]) - 1
        last = np.array([example.history[-1] for example in examples]) - 1
        candidates = np.stack([example.candidates for example in examples]) - 1
        anchors, values = self.values[last][:, None], self.values[candidates]
        shared = (anchors[..., :, None] == values[..., None, :]).any((-1, -2))
        return np.einsum("ncr,nr->nc", shared, self.preferences[users])


def _draw_values(settings: PlantedWorldSettings, generator: np.random.Generator) -> np.ndarray:
    shape = (settings.num_items, settings.num_relations, settings.values_per_relation)
    return generator.random(shape).argsort(axis=2)[:, :, : settings.values_per_item]


def _draw_preferences(settings: PlantedWorldSettings, generator: np.random.Generator) -> np.ndarray:
    relations = np.arange(settings.num_users) % settings.num_relations
    preferences = np.eye(settings.num_relations)[relations]
    known = settings.num_users - round(settings.num_users * settings.new_user_fraction)
    for start, stop in ((0, known), (known, settings.num_users)):
        mixed = stop - round((stop - start) * settings.mixture_fraction)
        shape = (stop - mixed, settings.num_relations)
        weights = np.zeros(shape)
        concentration = np.full(settings.mixture_size, settings.mixture_concentration)
        weights[:, : settings.mixture_size] = generator.dirichlet(concentration, size=stop - mixed)
        preferences[mixed:stop] = generator.permuted(weights, axis=1)
    return preferences


def _ties(values: np.ndarray) -> np.ndarray:
    """Which items share an entity along each relation, shape (R, num_items, num_items); none with itself."""
    ties = np.zeros((values.shape[1], len(values), len(values)), dtype=bool)
    for one in range(values.shape[2]):
        for other in range(values.shape[2]):
            ties |= values[:, :, one].T[:, :, None] == values[:, :, other].T[:, None, :]
    ties[:, np.arange(len(values)), np.arange(len(values))] = False
    return ties


def _offer(
    ties: np.ndarray,
    last: np.ndarray,
    free: np.ndarray,
    settings: PlantedWorldSettings,
    generator: np.random.Generator,
) -> np.ndarray:
    """Items to choose from, (U, C): at place r one that is tied to the last item along relation r alone, then untied
    ones."""
    tied = ties[:, last]
    number, lottery = tied.sum(0), generator.random(free.shape, dtype=np.float32)
    chosen = []
    for relation in [*range(settings.num_relations), None]:
        fits = (number == 0 if relation is None else tied[relation] & (number == 1)) & free
        count = settings.num_candidates - settings.num_relations if relation is None else 1
        if fits.sum(1).min() < count:
            raise LKGError(
                f"For one of the users only {int(fits.sum(1).min())} of {settings.num_items} items fit where the "
                f"offer needs {count}. Take more items (num_items), other numbers of values_per_relation, or shorter "
                "histories."
            )
        order = np.where(fits, lottery, 2.0)
        chosen.append(np.argpartition(order, count - 1, axis=1)[:, :count] if count > 1 else order.argmin(1)[:, None])
    return np.concatenate(chosen, axis=1)[:, : settings.num_candidates]


def _relation_weights(
    preferences: np.ndarray, settings: PlantedWorldSettings, generator: np.random.Generator
) -> np.ndarray:
    """The weights each user applies at this step, (U, R)."""
    if settings.mixing == "utility":
        return preferences
    drawn = (preferences.cumsum(1) < generator.random((len(preferences), 1))).sum(1)
    return np.eye(preferences.shape[1])[drawn.clip(max=preferences.shape[1] - 1)]
