"""Write the card of a run beside its exported files for the Hugging Face Hub, without paths, hosts and users."""

import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from imago.analysis.evaluation import load_evaluation
from imago.analysis.page import main_results, read_or_none
from imago.analysis.report import check_settings
from imago.errors import ConfigError, DataError, UserError
from imago.export.export import export
from imago.export.formats import FORMATS, Options, report_file
from imago.export.metadata import metrics_of, read_metadata
from imago.files import PARTIAL_SUFFIX, move_to, read_json, report_unwritable, sha256_of, write_text
from imago.images import Preprocess
from imago.inference.calibration import CALIBRATION_FILE, checkpoint_digests, describe_calibration, read_temperature
from imago.paths import CONFIG_DIR, METADATA_FILE, checkpoint_file, short_path
from imago.runs.records import RunRecord, read_record
from imago.statistics.metrics import most_confused
from imago.text import count_text, markdown_table, metric_text, printable, table_lines

_FIGURES = ("robustness.png", "unknown_images.png", "confusion.png", "reliability.png")
_FILES = {"README.md", "model.onnx", "model.safetensors", "config.json", METADATA_FILE, *_FIGURES}
_HUB_DATASETS = {"CIFAR10": "uoft-cs/cifar10", "CIFAR100": "uoft-cs/cifar100"}
_PRIVATE = ("paths", "logger", "run_name", "sweep_name", "resume", "tags", "hydra")  # settings of a machine or account
_DATA = ("data", "data.root", "data.split_seed", "data.fold", "data.split_file", "data.train_fraction")
_FACTS = (*_DATA, "data.group_by", "data.group_pattern", "model", "device", "precision", "cpu", "num_cpus", "python")
_NUM_WORST = 5  # classes and confusions; our own choice
_LIMITS = {"robustness": "corrupt=all", "unknown_images": "ood=DATA"}  # part of the results -> setting of eval.py
_CODE = {  # file -> the program that loads it, and how
    "model.onnx": """ONNX Runtime (or `python src/predict.py run=model.onnx input=PHOTO` of imago):\n\n```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
probabilities = session.run(["probabilities"], {"images": images})[0]\n```""",
    "model.safetensors": "`model.safetensors` has the weights, by the names of the network's own library.",
    "config.json": """timm, from the Hub with `hf_hub:OWNER/NAME` in place of `local-dir:.`:\n\n```python
import timm
network = timm.create_model("local-dir:.", pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))\n```""",
}


def write_model(cfg: DictConfig) -> None:
    """Write RUN/model and upload it, as `card` and `push` say; raise a `UserError` for what the user can correct."""
    check_settings(cfg)
    run, target = Path(cfg.run or "").resolve(), Path(cfg.output or f"{cfg.run}/model").absolute()
    if not cfg.run or not (run / "summary.json").is_file():
        raise ConfigError(f"run={cfg.run} is not one run, of which a model card can be; type e.g. run=logs/latest.")
    if cfg.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", cfg.push, re.ASCII):
        raise ConfigError(f"push={cfg.push} is not OWNER/NAME, a repository of the Hub such as push=me/flowers.")
    if cfg.push and find_spec("huggingface_hub") is None:
        raise ConfigError(f"push={cfg.push} needs the package huggingface_hub, an extra: pip install -e '.[hub]'.")
    if target.exists() and not target.is_dir() or cfg.push and not cfg.card and not (target / "README.md").is_file():
        raise ConfigError(f"{short_path(target)} is no model directory with README.md; card=true writes RUN/model.")
    if cfg.card and target.exists() and not (cfg.overwrite and {file.name for file in target.iterdir()} <= _FILES):
        raise ConfigError(f"{short_path(target)} exists; overwrite=true replaces it, unless it has other files, too.")
    if cfg.card:
        can_export = "export" in read_json(run / "provenance.json").get("commands", ["export"])
        exports = [_exported(cfg, run, name) for name in ("onnx", "safetensors") if can_export]
        with report_unwritable(target), TemporaryDirectory(dir=target.parent, suffix=PARTIAL_SUFFIX) as temporary:
            (part := Path(temporary, "model")).mkdir()
            for file in [f for path in exports if path for f in (path.iterdir() if path.is_dir() else [path])]:
                shutil.copyfile(file, part / file.name)
            _write_card(read_record(run), part, (cfg.push or f"/{run.name}").split("/")[1], cfg.license)
            move_to(part, target)
        print(f"model directory {short_path(target)}; its README.md is yours to complete, e.g. the intended use")
    if cfg.push:
        _push(cfg.push, target, cfg.private)


def _push(name: str, path: Path, is_private: bool) -> None:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not get_token():
        raise ConfigError(f"push={name} needs a token of the Hub: run hf auth login, or set HF_TOKEN.")
    rows = sorted((printable(f.relative_to(path)), f"{f.stat().st_size:,}") for f in path.rglob("*") if f.is_file())
    print(*table_lines([("file", "bytes"), *rows], right=[1]), sep="\n")
    # OSError, that of the HTTP library for a lost connection, and that of a name or front matter that the Hub refuses.
    errors = (*HfHubHTTPError.__bases__, ValueError)
    try:
        url = HfApi().create_repo(name, private=is_private, exist_ok=True)
        if is_private and not HfApi().repo_info(name).private:
            raise ConfigError(f"push={name} exists and is public; type private=false to upload to it.")
        HfApi().upload_folder(repo_id=name, folder_path=path, commit_message="Model card and exported files")
    except errors as error:  # type: ignore[misc]
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise UserError(f"push={name}: not, or not wholly, uploaded: {reason}") from error
    print(f"uploaded to {url}")


def _exported(cfg: DictConfig, run: Path, name: str) -> Path | None:
    """Return the file or directory of a format, written now unless it is of this checkpoint; None if it cannot be."""
    checkpoint, path = checkpoint_file(run), run / "export" / FORMATS[name].file
    file = path / METADATA_FILE if name == "safetensors" else path
    if checkpoint.is_file() and file.is_file():
        digests = {"sha256": sha256_of(file)} | checkpoint_digests(checkpoint)
        if read_json(path.with_name(report_file(Options(name)))).items() >= digests.items():
            return path
    typed = {"run": str(run), "format": name, "overwrite": cfg.overwrite, "trust": cfg.trust}
    try:
        export(OmegaConf.merge(OmegaConf.load(CONFIG_DIR / "export.yaml"), typed))  # type: ignore[arg-type]
    except UserError as error:
        if isinstance(error, ConfigError | DataError):
            raise
        print(f"note: no {path.name}: {printable(str(error))}")
        return None
    return path


def _write_card(record: RunRecord, part: Path, name: str, license: str | None) -> None:
    run, metadata = Path(record.run_dir), read_metadata(part) if (part / METADATA_FILE).is_file() else {}
    digests = [sha256_of(file) for file in (part / "model.onnx", checkpoint_file(run)) if file.is_file()]
    results: dict[str, Any] = {}
    for file in sorted(run.glob("eval/*/metrics.json"), key=lambda file: (file.parent.name == "test", file)):
        values = read_json(file)
        if values.get("model_sha256") not in digests:
            print(f"note: {short_path(file.parent)} is left out: it is of another checkpoint or file")
            continue
        robust = read_json(file.with_name("robustness.json"))
        robust = robust if robust.get("model_sha256", values["model_sha256"]) == values["model_sha256"] else {}
        results = {file.parent.name: values | {"robustness": robust}} | results
        for figure in filter(Path.is_file, map(file.with_name, _FIGURES if robust else _FIGURES[1:])):
            shutil.copyfile(figure, part / figure.name)
    numbers = {key: {**values, **dict.fromkeys(_LIMITS)} for key, values in results.items()}
    try:  # JSON files, which another program may have changed
        tables = [list(rows) for rows in (_facts(record), _numbers(numbers), _limits(run, results))]
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{run} has damaged results ({error!r}); evaluate it again with eval.py run=RUN.") from error
    classes = [f"{index} {_text(text)}" for index, text in enumerate(metadata.get("class_names", ["unknown"]))]
    preprocess = Preprocess.from_dict(metadata["preprocess"]) if metadata else None
    images = f"uint8 (N, 3, {preprocess.size}, {preprocess.size}) RGB, {preprocess.describe()}" if preprocess else "?"
    code = [f"\n{text}" for file, text in _CODE.items() if (part / file).is_file()]
    sections = {
        "Intended use": ["Not stated by the author."],
        "Classes": [f"By the index of the output: {', '.join(classes)}."],
        **dict(zip(("Data and training", "Results", "Calibration and limits"), map(_table, tables), strict=True)),
        "Figures": [f"![{file}]({file})" for file in _FIGURES if (part / file).is_file()],
        "How to load it": [f"`images` are {images}; the files normalize them.", *code],
    }
    front = _front_matter(record, name, license, "timm" if (part / "config.json").is_file() else "imago")
    body = [line for title, lines in sections.items() if lines for line in ("", f"## {title}", "", *lines)]
    head = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {_text(name)}\n\nLicense: {license or 'not stated'}."
    write_text(part / "README.md", "\n".join([head, *body, ""]))


def _text(value: Any) -> str:
    """Escape text of the run: what could be Markdown, math or HTML becomes an entity, which is only text."""
    special = r"[^\w\s.,;:%()+/='-]|:(?=//)|(?<!\w)_|_(?!\w)"
    return re.sub(special, lambda found: f"&#{ord(found[0])};" if found[0].isascii() else found[0], printable(value))


def _public(value: Any) -> str:
    """Keep only the last name of each path in text of the run that is absolute or leads upwards."""
    text = re.sub(r"(?<=\S)/+(?=[\s,\"'\]})]|$)", "", printable(value))
    return re.sub(r"""(^|(?<=[=\[,{:"' (]))(~\w*|\.\.)?/(?=\S)([^,=\[\]{}"']*/)?""", "", text)


def _table(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    rows = [(_text(_public(name)), _text(_public(value))) for name, value in pairs if value not in (None, "")]
    return markdown_table([("", ""), *rows])


def _numbers(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, str]]:
    """Yield data, counts, and numbers with a 95 % interval, at all levels of nested results but for classes."""
    for key, value in values.items():
        label = f"{name}{key.replace('_', ' ')}"
        interval = values.get("interval_95" if key in ("acc", "coverage") else f"{key}_interval_95")
        if (interval := interval or values.get(f"{key}_interval")) is not None:
            ends = zip(np.atleast_1d(value), np.atleast_2d(interval), strict=True)
            yield label, "; ".join(f"{metric_text(x)} (95 %: {' to '.join(map(metric_text, xs))})" for x, xs in ends)
        elif key in ("clean_acc", "calibration_error"):
            yield label, " / ".join(map(metric_text, np.atleast_1d(value)))
        elif key in ("data", "data_root", "split", "tta", "severity") or key.startswith("num_"):
            yield label, f"{value:,}" if isinstance(value, int) else value
        elif isinstance(value, dict) and key not in ("per_class", "preprocess"):
            yield from _numbers(value, f"{label}: ")


def _facts(record: RunRecord) -> Iterator[tuple[str, Any]]:
    summary, provenance = (read_json(Path(record.run_dir, f"{name}.json")) for name in ("summary", "provenance"))
    sizes = (summary.get("num_train_images"), (summary.get("val") or {}).get("num_images"), record.num_test_images)
    yield "images of train, val, test", " / ".join(count_text(size) or "?" for size in sizes)
    yield from ((name, {**provenance, **record.settings}.get(name)) for name in _FACTS)
    yield from (("status of the run", record.status), ("data fingerprint", record.data_fingerprint))
    typed = [(name, value) for name, value in record.typed.items() if name.partition(".")[0] not in _PRIVATE]
    words = [_public(f"{name}={value}" if value else name).replace('"', "") for name, value in typed]
    yield "command", f"python src/train.py {shlex.join(words)}"
    if git := provenance.get("git"):
        yield "commit", f"{git['commit']}{', with uncommitted changes' if git.get('diff') else ''}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in provenance.get("packages", {}).items())
    yield from ((name, f"{value} {note and f'({note})'}") for name, value, note in main_results(record))


def _limits(run: Path, results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield calibration, corrupted and unknown images, weak classes and mistakes, or the command that measures them."""
    measure, checkpoint = "not measured; python src/eval.py run=RUN", checkpoint_file(run)
    is_fitted = checkpoint.is_file() and not read_temperature(checkpoint)[1]
    entries = read_json(checkpoint.with_name(CALIBRATION_FILE)) if is_fitted else {}
    yield "calibration", describe_calibration(entries[checkpoint.name]) if entries else f"{measure} calibrate=fit"
    for key, setting in _LIMITS.items():
        found = {name: values[key] for name, values in results.items() if values.get(key)}
        yield from _numbers(found, f"{key.replace('_', ' ')}: ") if found else [(key, f"{measure} {setting}")]
    if (evaluation := read_or_none([], load_evaluation, run, "test")) is None:
        yield "weak classes and mistakes", measure
        return
    names, scores = evaluation.class_names, evaluation.per_class
    for i in [i for i in np.argsort(scores.f1, kind="stable") if scores.num_images[i]][:_NUM_WORST]:
        yield f"weak class: {names[i]}", f"F1 {scores.f1[i]:.4f}, recall {scores.recall[i]:.4f}"
    for true, other, count in most_confused(evaluation.confusion, _NUM_WORST):
        yield f"mistake: {names[true]} as {names[other]}", f"{count:,} images"


def _front_matter(record: RunRecord, name: str, license: str | None, library: str) -> dict[str, Any]:
    """Return the metadata of the Hub (hub-docs/modelcard.md), the test with one view; what is unknown is left out."""
    data, root = str(record.settings.get("data", "unknown")), Path(str(record.settings.get("data.root") or "")).name
    known = [_HUB_DATASETS[data]] if data in _HUB_DATASETS else []
    front: dict[str, Any] = {"license": license, "library_name": library, "pipeline_tag": "image-classification"}
    if record.test_tta:  # not the accuracy of the files, which see one view of an image
        test = metrics_of(run := Path(record.run_dir), checkpoint_file(run)).get("test", {})
        (low, high), acc = test.get("interval_95") or (None, None), test.get("acc")
        record = replace(record, test_acc=acc, test_low=low, test_high=high, num_test_images=test.get("num_images"))
    ends = f"{metric_text(record.test_low)} to {metric_text(record.test_high)}, n = {record.num_test_images}"
    metric = {"type": "accuracy", "value": record.test_acc, "name": f"accuracy (95 %: {ends})"}
    slug = known[0] if known else re.sub(r"[^\w.-]+", "-", root or data, flags=re.ASCII)
    dataset = {"type": slug, "name": data if known else printable(root or data), "split": "test"}
    result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [metric]}
    index = {"metrics": ["accuracy"], "model-index": [{"name": printable(name), "results": [result]}]}
    front |= {"tags": ["imago"], "datasets": known} | (index if record.test_acc is not None else {})
    return {key: value for key, value in front.items() if value}
