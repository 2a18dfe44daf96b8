"""Packaging. `hub_cards/` lies beside the package in the checkout and inside it in the wheel."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "llamarec_lkg" / "__init__.py").read_text(encoding="utf-8")
).group(1)

DEMO = ["gradio>=6.31"]

setup(
    name="llamarec-lkg",
    version=VERSION,
    description="Recommendation ranking with a language model and a knowledge graph, for the Hugging Face ecosystem",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["llamarec_lkg", "llamarec_lkg.*"]), "llamarec_lkg.hub_cards"],
    package_dir={"llamarec_lkg.hub_cards": "hub_cards"},
    package_data={"llamarec_lkg.hub_cards": ["*.j2", "space/*"]},
    install_requires=[
        "accelerate>=1.10",
        "datasets>=4.0",
        "duckdb>=2.0,<3",
        "evaluate>=0.4.6",
        "filelock>=3.13",
        "gguf>=0.17",
        "huggingface_hub>=1.26",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "networkx>=3.2",
        "numpy>=1.26",
        "pandas>=2.2",
        "peft>=0.20",
        "pyarrow>=17",
        "pyyaml>=6",
        "safetensors>=0.6",
        "scipy>=1.12",
        "torch>=2.8",
        "tqdm>=4.66",
        "transformers>=5.23",
        "trl>=1.16",
        "wrapt>=1.16",
    ],
    extras_require={
        "quantization": ["bitsandbytes>=0.48"],
        "ray": ["ray>=2.40"],
        "remote": ["httpx>=0.27"],
        "serve": [
            "fastapi>=0.133",
            "prometheus-client>=0.21",
            "uvicorn>=0.34",
            'uvloop>=0.21; sys_platform != "win32"',
        ],
        "demo": DEMO,
        "bench": ["sentence-transformers>=5"],
        "test": [
            *DEMO,
            "aiohttp>=3.10",
            "httpx>=0.27",
            "httpx2>=2",
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-cov>=6",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "selenium>=4.30",
            "setuptools>=77",
            "tensorboard>=2.18",
        ],
    },
    entry_points={"console_scripts": ["llamarec-lkg=llamarec_lkg.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
