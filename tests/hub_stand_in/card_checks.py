"""The Hub's checks of a README's metadata, as its `validate-yaml` address answers them: (errors, warnings)."""

from __future__ import annotations

import re
from typing import Any

import yaml

from llamarec_lkg.hub.dataset_card import HUB_LICENSES


# a field that may be one string or a list of them
STRINGS = ("license", "language", "tags", "datasets", "metrics", "base_model", "task_categories", "source_datasets")
STRING = ("pipeline_tag", "library_name", "license_name", "pretty_name", "base_model_relation")


def front_matter(content: str) -> str | None:
    """The text between the two lines of dashes that open a README, or none."""
    match = re.match(r"^\s*---[ \t]*\r?\n(.*?)(?:^|\r?\n)---[ \t]*(?:\r?\n|$)", content, re.DOTALL)
    return match.group(1) if match else None


def metadata(content: str) -> dict[str, Any]:
    """The metadata of a README; empty where there is none that can be read."""
    try:
        data = yaml.safe_load(front_matter(content) or "")
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def validate(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """What is wrong with a README's metadata, and what could be better."""
    text = front_matter(content)
    if not (text or "").strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"YAML metadata error: {error}"], []
    if not isinstance(data, dict):
        return ["YAML metadata error: the metadata is not a mapping"], []
    errors = []
    for name in STRINGS:
        values = data.get(name, [])
        if not all(isinstance(value, str) for value in (values if isinstance(values, list) else [values])):
            errors.append(f'"{name}" must be a string or a list of strings')
    errors += [f'"{name}" must be a string' for name in STRING if not isinstance(data.get(name, ""), str)]
    licenses = data.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if isinstance(name, str) and name not in HUB_LICENSES:
            errors.append(f'"license" must be one of the known licenses, got {name!r}; use other and license_name')
    if repo_type == "space" and data.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
        errors.append('"sdk" must be one of [gradio, streamlit, docker, static]')
    if repo_type == "dataset":
        errors += _configs(data.get("configs", []))
    if repo_type == "model":
        errors += _model_index(data.get("model-index", []))
    return errors, []


def _configs(configs: Any) -> list[str]:
    if not isinstance(configs, list) or not all(isinstance(entry, dict) for entry in configs):
        return ['"configs" must be a list of objects']
    names = [entry.get("config_name") for entry in configs]
    errors = ['"configs[].config_name" must be a string' for name in names if not isinstance(name, str)]
    if not errors and len(set(names)) < len(names):
        errors.append('"configs[].config_name" must be unique')
    return errors


def _model_index(models: Any) -> list[str]:
    """Each model has a name and results; each result a task and a dataset with a type, and metrics with values."""
    if not isinstance(models, list):
        return ['"model-index" must be a list']
    errors = []
    for at, model in enumerate(models):
        where = f"model-index[{at}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"{where}.name" is required')
            continue
        results = model.get("results")
        if not isinstance(results, list):
            errors.append(f'"{where}.results" must be a list')
            continue
        for number, result in enumerate(results):
            errors += _result(f"{where}.results[{number}]", result)
    return errors


def _result(where: str, result: Any) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{where}" must be an object']

    def text(part: Any, key: str) -> bool:
        return isinstance(part, dict) and isinstance(part.get(key), str)

    errors = []
    if not text(result.get("task"), "type"):
        errors.append(f'"{where}.task.type" is required')
    errors += [
        f'"{where}.dataset.{key}" is required' for key in ("name", "type") if not text(result.get("dataset"), key)
    ]
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{where}.metrics" must be a list with at least one entry']
    for at, metric in enumerate(metrics):
        if not text(metric, "type") or metric.get("value") is None:
            errors.append(f'"{where}.metrics[{at}]" needs a type and a value')
    return errors
