"""What the Hub accepts as the metadata of a card; the wording follows answers of the Hub that its users have quoted."""

import re
from collections.abc import Iterator

import yaml

LICENSE_IDS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c
ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""

FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", re.DOTALL)
MODEL_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def read_metadata(card: str) -> dict:
    """The YAML block at the top of a card; {} when there is none. Raises yaml.YAMLError."""
    block = FRONT_MATTER.match(card)
    return yaml.safe_load(block[1]) or {} if block else {}


def check_card(card: str, repo_type: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings of a card; a card with errors is refused."""
    try:
        metadata = read_metadata(card)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ["YAML metadata must be an object"], []
    errors = [*_license_errors(metadata)]
    if repo_type == "model":
        errors += [*_base_model_errors(metadata), *_index_errors(metadata.get("model-index", []))]
    return errors, []


def _license_errors(metadata: dict) -> Iterator[str]:
    known = LICENSE_IDS.split()
    for name in _as_list(metadata.get("license", [])):
        if name not in known:
            yield f'"license" must be one of [{", ".join(known)}]'


def _base_model_errors(metadata: dict) -> Iterator[str]:
    for name in _as_list(metadata.get("base_model", [])):
        if not MODEL_ID.fullmatch(str(name)):
            yield f'"base_model" with value "{name}" is not valid. Use a model id from https://hf.co/models.'


def _index_errors(index: object) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for m, model in enumerate(index):
        where = f"model-index[{m}]"
        yield from _field_errors(where, model, required=("name",))
        results = _value_at(model, "results")
        if not isinstance(results, list):
            yield f'"{where}.results" must be an array'
            continue
        for r, result in enumerate(results):
            yield from _result_errors(f"{where}.results[{r}]", result)


def _result_errors(where: str, result: object) -> Iterator[str]:
    optional = (
        "task.name",
        "dataset.config",
        "dataset.split",
        "dataset.revision",
        "source.name",
        "source.url",
    )
    yield from _field_errors(where, result, ("task.type", "dataset.type", "dataset.name"), optional)
    metrics = _value_at(result, "metrics")
    if not isinstance(metrics, list):
        yield f'"{where}.metrics" must be an array'
        return
    for m, metric in enumerate(metrics):
        yield from _field_errors(f"{where}.metrics[{m}]", metric, ("type",), ("name",))
        if _value_at(metric, "value") in (None, ...):
            yield f'"{where}.metrics[{m}].value" is required'


def _field_errors(
    where: str, entry: object, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[str]:
    for key in (*required, *optional):
        value = _value_at(entry, key)
        if value is ... and key in required:
            yield f'"{where}.{key}" is required'
        elif value is not ... and not isinstance(value, str):
            yield f'"{where}.{key}" must be a string'


def _value_at(entry: object, dotted: str) -> object:
    """The value under a path of keys, or `...` when it is absent: null is a value."""
    for key in dotted.split("."):
        entry = entry.get(key, ...) if isinstance(entry, dict) else ...
    return entry


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]
