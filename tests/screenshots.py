"""Pictures of the demo for the README: `python -m tests.screenshots outputs/quickstart`, into examples/results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    from browser import DESKTOP, PHONE, Page, browser, served

    from llamarec_lkg import Recommender

    parser = argparse.ArgumentParser(description="Draw the demo at the width of a desktop and of a phone.")
    parser.add_argument("model", help="folder of a trained model")
    parser.add_argument("--history", nargs="+", default=["50", "181", "172"])
    parser.add_argument("--output", default=ROOT / "examples" / "results")
    args = parser.parse_args()
    with served(Recommender.from_pretrained(args.model), args.history) as address, browser() as driver:
        page = Page(driver, address)
        for name, size, height in (("desktop", DESKTOP, 1000), ("phone", PHONE, 1500)):
            page.open(size)
            page.picture(Path(args.output) / f"demo-{name}.png", height)


if __name__ == "__main__":
    main()
