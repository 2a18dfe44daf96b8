"""The demo: choose a history, see the list ranked, why each item is there, and what other preferences would change."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import LKGError
from ..utils.hub import template_text
from .demo_view import Answer, DemoView, in_words
from .recommender import Recommender


if TYPE_CHECKING:
    import gradio


SLIDERS_AT_ONCE = 4  # the others wait behind a click

INTRODUCTION = """# Ranked, with reasons
A retriever finds candidates for a history, a language model and a knowledge graph rank them. Every score is a sum, and
each item says what it is the sum of."""

PREFERENCES = """### Preferences
What the history says its owner goes by, in percent. Move a slider, and the list moves."""


def launch_demo(model: str | Path, *, history: Sequence[str] | None = None, **options: Any) -> None:
    """Serve the demo of a saved ranker until it is interrupted.

    Args:
        model: folder or Hub id of a ranker with its processor and retriever.
        history: raw item ids to begin with; by default what most people chose.
        options: for Gradio's `Blocks.launch`, such as `server_name` and `server_port`.

    Raises:
        LKGError: Gradio is not installed, the model has no retriever, an item is not known, or the port is in use.
    """
    if importlib.util.find_spec("gradio") is None:
        raise LKGError('The demo needs Gradio, which is not installed: pip install "llamarec-lkg[demo]".')
    blocks = build_demo(Recommender.from_pretrained(model), history)
    try:
        blocks.launch(**look(), **options)
    except (OSError, OverflowError) as error:  # the second: of a number that no port has
        place = ":".join(str(options[name]) for name in ("server_name", "server_port") if options.get(name))
        raise LKGError(
            f"The demo cannot listen at {place or 'any port that it tries'}: it is in use, or no address of this "
            "machine. Give another port (--port), or none for the first free one from 7860 on, or another --host."
        ) from error


def look() -> dict[str, Any]:
    """Arguments of Gradio's `Blocks.launch`: colours, fonts of the reader's own machine, and the style sheet."""
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", radius_size="lg", **fonts)
    return {"theme": theme, "css": template_text("space/demo.css"), "footer_links": ["gradio", "settings"]}


def build_demo(recommender: Recommender, history: Sequence[str] | None = None) -> gradio.Blocks:
    """The app, with the list of the first history already in it."""
    import gradio as gr

    view = DemoView(recommender)
    history = view.first_history() if history is None else list(history)
    first = view.answer(history)
    sliders: dict[str, gr.Slider] = {}

    def drawn(answer: Answer, own_ranks: dict[str, int], last_ranks: dict[str, int], held: str = "") -> list[Any]:
        """What every event gives back. A slider that is `held` keeps the value that the hand gives it."""
        ranked, compared = view.ranked(answer, own_ranks, last_ranks), view.compared(answer)
        updates = [
            gr.update(label=_label(answer, name), **({} if name == held else {"value": _percent(answer, name)}))
            for name in view.relations
        ]
        return [answer, own_ranks, ranked, compared, *updates]

    def choose(chosen: list[str]) -> list[Any]:
        answer = view.answer(chosen)
        return drawn(answer, answer.ranks, answer.ranks)

    def reset(chosen: list[str], before: Answer) -> list[Any]:
        answer = view.answer(chosen)
        return drawn(answer, answer.ranks, before.ranks)

    def move(name: str, chosen: list[str], before: Answer, own_ranks: dict[str, int], percent: float) -> list[Any]:
        answer = view.move(chosen, before, name, percent / 100)
        return drawn(answer, own_ranks, before.ranks, held=name)

    def slider(name: str) -> None:
        value = {"value": _percent(first, name), "label": _label(first, name)}
        sliders[name] = gr.Slider(0, 100, step=1, elem_classes="lkg-slider", buttons=[], **value)

    with gr.Blocks(title="Ranked, with reasons", analytics_enabled=False) as blocks:
        shown, ranks = gr.State(first), gr.State(first.ranks)
        gr.Markdown(INTRODUCTION, elem_classes="lkg-head")
        with gr.Row(elem_classes="lkg-page"):
            with gr.Column(scale=4, min_width=320, elem_classes="lkg-side"):
                picked = gr.Dropdown(
                    view.choices(history),
                    value=history,
                    multiselect=True,
                    num_choices_shown=40,
                    label="History, oldest first",
                    info="Type to search.",
                    elem_id="lkg-history",
                )
                if view.relations:
                    with gr.Column(elem_classes="lkg-panel"):
                        gr.Markdown(PREFERENCES)
                        for name in view.relations[:SLIDERS_AT_ONCE]:
                            slider(name)
                        if view.relations[SLIDERS_AT_ONCE:]:
                            with gr.Accordion("More relations", open=False):
                                for name in view.relations[SLIDERS_AT_ONCE:]:
                                    slider(name)
                        again = gr.Button("Back to the history's own", size="sm", elem_id="lkg-reset")
            with gr.Column(scale=7, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Ranked list"):
                        ranked = gr.HTML(view.ranked(first, first.ranks, first.ranks), elem_id="lkg-ranked")
                    with gr.Tab("Beside the retriever"):
                        compared = gr.HTML(view.compared(first), elem_id="lkg-compared")
        outputs = [shown, ranks, ranked, compared, *(sliders[name] for name in view.relations)]
        quietly = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        picked.change(choose, picked, outputs, **quietly)
        if view.relations:
            again.click(reset, [picked, shown], outputs, **quietly)
        for name, one in sliders.items():
            one.input(partial(move, name), [picked, shown, ranks, one], outputs, **quietly)
    return blocks


def _percent(answer: Answer, name: str) -> float:
    return round(100 * answer.preferences[name])


def _label(answer: Answer, name: str) -> str:
    """A slider's name, with what the history says where something else is set."""
    changed = abs(answer.preferences[name] - answer.own[name]) > 0.005
    return in_words(name) + (f"  (history: {answer.own[name]:.0%})" if changed else "")
