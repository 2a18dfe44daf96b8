"""The list of what the campaign tries. A further part is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from campaign import forms, fuzz, jobs, kills, machine


class Part(NamedTuple):
    """What is tried, `small` times in every run and `large` times in a campaign.

    `run(count, folder)` tries so many and yields for each None where it survived, else what was lost.
    """

    run: Callable[[int, Path], Iterator[str | None]]
    small: int
    large: int


PARTS = {
    "kill prepare": Part(partial(kills.kill_runs, jobs.prepare), 1, 50),
    "kill train-retriever": Part(partial(kills.kill_runs, jobs.train_retriever), 1, 50),
    "kill train, resume": Part(partial(kills.kill_runs, jobs.train), 0, 50),
    "kill rank": Part(kills.kill_rank, 1, 50),
    "kill save": Part(kills.kill_save, 2, 50),
    "kill push": Part(kills.kill_push, 1, 50),
    "odd tables": Part(fuzz.tables, 10, 500),
    "damaged tables": Part(fuzz.files, 10, 300),
    "odd graphs": Part(fuzz.graphs, 50, 300),
    "odd settings": Part(fuzz.configurations, 30, 400),
    "damaged settings": Part(fuzz.yaml_files, 30, 100),
    "odd requests": Part(fuzz.requests, 30, 300),
    "odd rows to rank": Part(fuzz.rows_to_rank, 5, 100),
    "damaged models": Part(fuzz.saved_folders, 4, 200),
    "forged texts": Part(forms.texts, 4, 200),
    "special tokens": Part(forms.special_tokens, 3, 60),
    "forged users": Part(forms.user_input, 10, 200),
    "full disk": Part(machine.full_disk, 0, 50),
    "read-only folders": Part(machine.read_only, 0, 14),
    "no network": Part(machine.no_network, 1, 6),
    "clock jumps": Part(machine.clock, 0, 9),
    "200 clients, a minute": Part(machine.clients, 0, 200),
    "two at once": Part(machine.together, 1, 10),
}
