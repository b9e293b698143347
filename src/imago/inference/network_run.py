"""Write a run directory for a network that was trained elsewhere: eval, predict, export and report take it as a run."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from imago.data.csv_list import check_class_names
from imago.errors import ConfigError, DataError
from imago.files import make_writable, open_text, read_json, sha256_of, write_json, write_text
from imago.images import Preprocess
from imago.model.adapt import build_network, choose_preprocess, find_weights, weights_preprocess
from imago.paths import checkpoint_file, command, short_path
from imago.runs.checkpoint import AtomicCheckpointIO

_NUM_DIGITS = 8  # of a hash in the name of a directory; our own choice
_IMAGENET = Preprocess(224, 256, "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of torchvision's weights


def write_network_run(
    log_dir: Path,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    class_names: str | None,
    preprocess: Mapping[str, Any],
) -> Path:
    """Write `checkpoints/best.ckpt` and `config.yaml` to LOG_DIR/eval/NETWORK-HASH; return that directory.

    `model` has the settings of the network and its `weights`, `data` those of the dataset to evaluate it on, with
    absolute paths. `class_names` is a text file with the class of each output on a line; None: ImageNet's.
    `preprocess` is what was typed of `imago.images.Preprocess`; None is as the weights need it.

    Raises:
        UserError: if the weights have no values for a part of the network, settings do not fit, or a file is damaged.
    """
    file = find_weights(model)
    if file is None:
        raise ConfigError("model.weights=null is a network without weights; type model.weights=FILE.")
    names = _imagenet_names() if class_names is None else _read_names(class_names)
    record = _preprocess(weights_preprocess(model), preprocess)
    net = build_network(model, len(names), record["size"], record, names)
    if new := net.new_tensor_names:
        raise ConfigError(
            f"model.weights={model['weights']} has no values for {', '.join(new)} with {len(names):,} classes and "
            f"{record['size']} px; type class_names=FILE.txt, with a line for each output, or another preprocess.size."
        )
    hparams = {"net": {**model, "freeze": None}, "class_names": names, "preprocess": record, "metrics": {}}
    identity = json.dumps([sha256_of(file), hparams, data], sort_keys=True).encode()
    name = f"{model.get('name') or type(net).__name__}-{hashlib.sha256(identity).hexdigest()[:_NUM_DIGITS]}"
    run = log_dir.absolute() / "eval" / name
    make_writable(run, "paths.log_dir=DIR")
    write_text(run / "config.yaml", yaml.safe_dump({"model": dict(model), "data": dict(data)}, sort_keys=False))
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "hyper_parameters": hparams}, checkpoint_file(run))
    return run


def finish_network_run(run: Path, metadata: Mapping[str, Any]) -> None:
    """Write the summary of a network, by which `report.py` takes it as a run, and print what to type next."""
    tta, before = metadata.get("tta", "none"), read_json(run / "summary.json")
    result = {key: metadata[key] for key in ("acc", "interval_95", "num_images")}
    result |= {"tta": tta} if tta != "none" else {}
    if tta != "none" and isinstance(known := before.get(metadata["split"]), dict) and "tta" not in known:
        result = known  # that of one view, as the network is used
    started = datetime.now(UTC).isoformat(timespec="seconds")
    summary = {"status": "evaluated", "started": started, metadata["split"]: result}
    write_json(run / "summary.json", before | summary)  # the other split may be there
    run_argument = shlex.quote(f"run={short_path(run)}")
    lines = ["next:", f"  {command('predict')} {run_argument} input=IMAGE", f"  {command('export')} {run_argument}"]
    if metadata["split"] != "all":
        lines.append(f"  {command('report')} {run_argument} split={metadata['split']}")
    print("\n".join(lines))


def _read_names(class_names: str) -> list[str]:
    try:
        with open_text(Path(class_names).expanduser()) as file:
            names = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"class_names={class_names} cannot be read ({reason}); type a text file.") from error
    check_class_names(names, f"class_names={class_names}:")
    return names


def _imagenet_names() -> list[str]:
    """Return the WordNet id and the first name of ImageNet's 1,000 classes, in the order of published heads."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ConfigError("class_names=null is ImageNet's, which timm has; install it, or type a file.") from error
    info = ImageNetInfo()
    ids = enumerate(info.label_names())
    return [f"{wordnet_id} {info.index_to_description(index).partition(',')[0]}" for index, wordnet_id in ids]


def _preprocess(known: Mapping[str, Any] | None, typed: Mapping[str, Any]) -> dict[str, Any]:
    if not known and (missing := [f"preprocess.{key}=..." for key in ("size", "mean", "std") if typed[key] is None]):
        raise ConfigError(f"it is unknown how images are prepared for this network; type {' '.join(missing)}")
    return choose_preprocess(typed, known, _IMAGENET)[0].to_dict()
