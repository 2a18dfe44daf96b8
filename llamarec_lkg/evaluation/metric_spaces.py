"""MRR, NDCG and Recall each as a folder for a Space that needs nothing of this package.

The file of a Space is put together from the very source of the functions and classes in `evaluate_metrics.py` and
`metrics.py`, so that its numbers cannot drift away from the library's. The source is read, not imported: writing the
folders needs neither `evaluate` nor torch.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import SpaceCard, SpaceCardData

from ..utils.files import atomic_files
from ..utils.hub import template_text
from .metrics import DEFAULT_KS


METRICS = ("MRR", "NDCG", "Recall")


GRADIO_VERSION = "6.31.0"


REQUIREMENTS = ("datasets>=4.0", "evaluate>=0.4.6", "numpy>=1.26")


def export_metric_spaces(folder: str | Path, owner: str = "your-name") -> list[Path]:
    """Write `mrr/`, `ndcg/` and `recall/` under `folder`: each a Space, and what `evaluate.load` reads.

    Args:
        folder: other files in it stay as they are, so it may hold clones of the Spaces.
        owner: the account the cards name in their examples.

    Returns:
        the three folders. Try one with `evaluate.load(str(path))`; upload it with `hf upload --repo-type space`.
    """
    written = []
    for name in METRICS:
        metric = name.lower()
        words = {"metric": metric, "class_name": name, "owner": owner}
        files = {
            f"{metric}.py": metric_source(name),
            "app.py": jinja2.Template(template_text("metric_app.py.j2"), keep_trailing_newline=True).render(words),
            "requirements.txt": "\n".join(REQUIREMENTS) + "\n",
            "README.md": str(_space_card(name, words)),
        }
        target = Path(folder) / metric
        with atomic_files(target) as temporary:
            for file, text in files.items():
                (temporary / file).write_text(text, encoding="utf-8")
        written.append(target)
    return written


def metric_source(name: str) -> str:
    """A Python file with the metric of this name that needs numpy, datasets and evaluate alone."""
    errors, functions, metrics = (_definitions(f) for f in ("../utils/errors", "metrics", "evaluate_metrics"))
    (text,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(metrics[name]).body[0].body
        if isinstance(node, ast.Assign) and node.targets[0].id == "text"
    )
    origin = "Made from llamarec_lkg (Apache-2.0), whose reports use the same functions."
    head = (
        f'"""{textwrap.fill(text, 115)}\n\n{origin}\n"""',
        "from __future__ import annotations",
        "from collections.abc import Sequence\nfrom typing import Any",
        "import datasets\nimport evaluate\nimport numpy as np",
    )
    constants = f"MISS = np.iinfo(np.int64).max\nDEFAULT_KS = {DEFAULT_KS}"
    body = [
        errors["LKGError"],
        *(functions[part] for part in ("target_ranks", "require_finite", "metrics_per_user")),
        *(metrics[part] for part in ("ranks_from_scores", "ranks_from_items", "RankingMetric", name)),
    ]
    return "\n\n\n".join(["\n\n".join(head), constants, *body]) + "\n"


def _definitions(file: str) -> dict[str, str]:
    """The source of each function and class of a file beside this one."""
    source = (Path(__file__).parent / f"{file}.py").read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


def _space_card(name: str, words: dict[str, Any]) -> SpaceCard:
    data = SpaceCardData(
        title=f"{name}@k for recommendation",
        emoji="🎯",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        app_file="app.py",
        pinned=False,
        license="apache-2.0",
        tags=["evaluate", "metric", "recommendation"],
    )
    return SpaceCard.from_template(data, template_str=template_text("metric_card.md.j2"), **words)
