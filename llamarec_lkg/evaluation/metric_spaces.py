"""Each metric of `evaluate_metrics.py` as a folder for a Space that needs nothing of this package.

The Python file of a Space is put together from the very source of the functions and classes there and in `metrics.py`,
so that its numbers cannot drift away from the library's. The source is read, not imported: `evaluate` takes seconds.
"""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from ..utils import errors
from ..utils.files import atomic_files
from ..utils.hub import template_text
from . import metrics


METRICS = ("MRR", "NDCG", "Recall")  # classes of evaluate_metrics.py
SHARED = ("LKGError", "target_ranks", "require_finite", "metrics_per_user", "ranks_from_scores", "ranks_from_items",
          "RankingMetric")  # fmt: skip
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
        metric = _metric_texts(name)
        target = Path(folder) / metric["metric"]
        files = {f"{metric['metric']}.py": metric_source(name), "requirements.txt": "\n".join(REQUIREMENTS) + "\n"}
        for file, template in {"app.py": "metric_app.py.j2", "README.md": "metric_card.md.j2"}.items():
            template = jinja2.Template(template_text(template), keep_trailing_newline=True)
            files[file] = template.render(metric=metric, class_name=name, owner=owner)
        with atomic_files(target) as temporary:
            for file, text in files.items():
                (temporary / file).write_text(text, encoding="utf-8")
        written.append(target)
    return written


def metric_source(name: str) -> str:
    """A Python file with the metric of this class name that needs numpy, datasets and evaluate alone."""
    origin = "Made from llamarec_lkg (Apache-2.0), whose reports use the same functions."
    head = (
        f'"""{textwrap.fill(_metric_texts(name)["text"], 115)}\n\n{origin}\n"""',
        "from __future__ import annotations",
        "from collections.abc import Sequence\nfrom typing import Any",
        "import datasets\nimport evaluate\nimport numpy as np",
    )
    constants = f"MISS = np.iinfo(np.int64).max\nDEFAULT_KS = {metrics.DEFAULT_KS}"
    body = [_definitions()[part][0] for part in (*SHARED, name)]
    return "\n\n\n".join(["\n\n".join(head), constants, *body]) + "\n"


def _metric_texts(name: str) -> dict[str, str]:
    """The texts in the body of a metric's class: `metric` (its name), `text`, `usage`, `citation_text`."""
    texts: dict[str, str] = {}
    for part in ("RankingMetric", name):
        for line in _definitions()[part][1].body:
            if isinstance(line, ast.Assign):
                texts[line.targets[0].id] = ast.literal_eval(line.value)
    return texts


@cache
def _definitions() -> dict[str, tuple[str, Any]]:
    """Name of a function or class -> its source and its syntax tree."""
    found = {}
    for path in (errors.__file__, metrics.__file__, Path(__file__).with_name("evaluate_metrics.py")):
        source = Path(path).read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = ast.get_source_segment(source, node), node
    return found
