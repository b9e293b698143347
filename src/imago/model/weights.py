"""Find files of weights, read them and copy them into a network.

A file that cannot be found, read or copied is an error; random weights are never used instead.
"""

import logging
import pickle
import re
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from imago.errors import ConfigError, DataError
from imago.model.layers import head_names, new_module_names
from imago.text import WORDNET_ID, join_names

log = logging.getLogger(__name__)

_MAX_DEPTH = 2  # of a state_dict in nested dicts; those of optimizers lie deeper; our own choice
# Before 2018 the layers of a DenseNet block had dots in their names, and its published files still have.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_COUNTER_SUFFIX = ".num_batches_tracked"  # of BatchNorm: older files lack it, and nothing here reads it
MAX_REASON_CHARS = 300  # of torch's list of tensors that do not fit: about four lines of a terminal; our own choice


def find_file(weights: str) -> Path:
    """Expand `~` and check that the file exists.

    Raises:
        DataError: it does not exist.
    """
    file = Path(weights).expanduser()
    if not file.is_file():
        fault = "is empty" if not weights else "is a directory" if file.is_dir() else "does not exist"
        raise DataError(
            f"model.weights={weights} {fault}; type a .pth or .safetensors file, a run directory, or null "
            "to train from scratch."
        )
    return file


def is_path(weights: str) -> bool:
    """Return whether `weights` is a path and not the name of published weights."""
    return bool(Path(weights).suffix) or "/" in weights or Path(weights).exists()


def recorded_preprocess(weights: str) -> dict[str, Any] | None:
    """Return the record of `imago.images.Preprocess` in a checkpoint of this project; None for other files."""
    content = _load_file(Path(weights).expanduser()) if weights.endswith(".ckpt") else None
    record = _hyperparameters(content).get("preprocess")
    return dict(record) if isinstance(record, Mapping) else None


def read_weights(file: Path, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Read a state_dict from a .pth, a .safetensors or a checkpoint of this project.

    It may be in containers as {"model": ..., "args": Namespace(...)}, and its keys may have a prefix, such as
    `module.`; both are found by `names`, the keys that a network needs. Of a checkpoint of this project, only the
    network is returned.

    Raises:
        DataError: the file is damaged, contains other than plain data and tensors, no state_dict, or values that are
            not finite (as torchvision's features-only weights of vgg16).
    """
    return _state_dict(_load_file(file), file, names)[0]


def _state_dict(content: Any, file: Path, names: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Find the state_dict in the content of a file, see `read_weights`; also return what was taken, for the log."""
    is_own = isinstance(content, Mapping) and "imago" in content
    found = dict(_tensor_dicts(content.get("state_dict") if is_own else content))
    if not found:
        keys = f", only {join_names(map(str, content))}" if isinstance(content, Mapping) and content else ""
        raise DataError(
            f"model.weights: {file} contains no state_dict (names and their tensors){keys}; use a file of weights."
        )
    if is_own:  # keep only the network: a loss may have tensors too
        found = {"": {key: value for key, value in found.get("", {}).items() if key.startswith("net.")}}
    prefixes = {container: _prefix(state, names) for container, state in found.items()}
    # Of equal ones, the average of the weights is not the one that a container `model` beside it names.
    best = max(found, key=lambda container: (prefixes[container][1], "ema" not in container))
    prefix, num_known = prefixes[best]
    others = [container for container in found if container != best and prefixes[container][1] == num_known > 0]
    tensors = {key.removeprefix(prefix): value for key, value in found[best].items() if key.startswith(prefix)}
    left_out = [key for key in found[best] if not key.startswith(prefix)]
    texts = {
        f"those of {best!r}": best,
        f"not those of {join_names(map(repr, others))}, which would fit too": others,
        f"without the prefix {prefix!r}": prefix and not is_own,
        f"left out: {join_names(left_out, 3)}": left_out,
    }
    for key, value in tensors.items():
        # A small file may have a huge view of a few numbers, or a tensor of another kind.
        is_dense = value.layout is torch.strided and not value.is_meta and not value.is_complex()
        if not is_dense or value.nbytes > value.untyped_storage().nbytes():
            raise DataError(f"model.weights: {file}: {key} is not a dense tensor with its numbers; save it as one.")
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"model.weights: {file} has values in {key} that are not finite; use other weights.")
    return tensors, ", ".join(text for text, is_true in texts.items() if is_true)


def _tensor_dicts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the dotted name of each container of named tensors, and its content."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield name, {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in content.items()}
    for key, value in content.items():
        yield from _tensor_dicts(value, f"{name}.{key}".lstrip("."), depth + 1)


def _prefix(state: Collection[str], names: Collection[str]) -> tuple[str, int]:
    """Return what stands before most of the `names` in the keys of a state_dict, and before how many."""
    ends = ((key, [0, *(match.end() for match in re.finditer(r"\.", key))]) for key in state)
    counts = Counter(key[:end] for key, key_ends in ends for end in key_ends if key[end:] in names)
    return max(counts.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))


def load_weights(net: Any, file: Path, weights: str | None, class_names: Sequence[str] = ()) -> list[str]:
    """Read a state_dict for `net`, or for `net.body` if it has one, copy its tensors and log how many were copied.

    `weights` is `model.weights` as typed. Of a checkpoint of this project, the rows of the head are those of the K
    `class_names`, or none if it lacks one of them; of other files the head is copied if it has K rows.

    Returns:
        Names of the tensors that were not copied.

    Raises:
        DataError: the file is damaged or does not fit the network.
    """
    content = _load_file(file)
    body = getattr(net, "body", net)
    targets = body.state_dict()
    is_published = weights is not None and not is_path(weights)  # such files may have names that the library converts
    state, origin = _state_dict(content, file, () if is_published else targets)
    state = net.convert_weights(state, weights) if hasattr(net, "convert_weights") else state
    head = [name for name in targets if name.startswith(tuple(f"{part}." for part in head_names(net)))]
    num_tensors, known = len(state), _recorded_classes(content)
    head_text = _match_head(state, head, known, class_names)
    new_tensor_names = _new_tensor_names(net, state, targets)
    counters = [name for name in targets if name not in state and name.endswith(_COUNTER_SUFFIX)]
    kept = {*new_tensor_names, *counters}
    merged: Any = OrderedDict(state | {name: targets[name] for name in kept})
    merged._metadata = targets._metadata  # versions of the modules, which torchvision's MNASNet requires
    try:
        body.load_state_dict(merged)
    except RuntimeError as error:
        reason = " ".join(str(error).partition("\n")[2].split())[:MAX_REASON_CHARS]
        raise DataError(
            f"model.weights: {file} does not fit this network ({reason}); choose the model= it was made from, or other "
            "weights."
        ) from error
    dropped = [name for name in new_tensor_names if name in state]
    text = f"{len(state) - len(dropped)} of {num_tensors} pretrained tensors loaded from {file.name}"
    text += f" ({origin})" if origin else ""
    text += f" (new: {', '.join(new_tensor_names)})" if new_tensor_names else ""
    text += f"; dropped from the file: {', '.join(dropped)}" if dropped else ""
    log.info("%s: %s%s", getattr(net, "name", type(net).__name__), text, head_text)
    if class_names and not known and head and not set(head) & set(new_tensor_names):
        _report_head_by_index(weights, class_names)
    return new_tensor_names


def _new_tensor_names(net: Any, state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors of head and stem for which a file has none, or one of another shape."""
    new: list[str] = []
    for part in new_module_names(net):
        names = [name for name in targets if name.startswith(f"{part}.")]
        if any(name not in state or state[name].shape != targets[name].shape for name in names):
            new += names
    return new


def _recorded_classes(content: Any) -> list[str]:
    """Return the names of the outputs in a checkpoint of this project; of other files none."""
    settings = _hyperparameters(content)
    return list(settings.get("output_names") or settings.get("class_names") or ())


def _match_head(state: dict[str, Tensor], head: Sequence[str], known: Sequence[str], class_names: Sequence[str]) -> str:
    """Select the rows of a file's head, in place, by the names of its classes; return what was done, for the log.

    If `known`, the classes of the file, lack one of `class_names`, the tensors of the head are removed.
    """
    known, class_names = ([normalize("NFC", name) for name in names] for names in (known, class_names))
    if not class_names or not known or list(class_names) == list(known):
        return ""
    if missing := [name for name in class_names if name not in known]:
        for name in head:
            state.pop(name, None)
        return f"; head not used: the file has no {join_names(missing)}, only the classes {join_names(known)}"
    rows = [known.index(name) for name in class_names]
    for name in head:
        if name in state and state[name].shape[:1] == (len(known),):
            state[name] = state[name][rows]
    return "; rows of the head matched by class name"


def _report_head_by_index(weights: str | None, class_names: Sequence[str]) -> None:
    """Log that the head is kept; warn if these are the classes of a published head only by their number."""
    first = join_names((f"{index} is {name}" for index, name in enumerate(class_names)), 3)
    text = f"model.weights={weights}: the head is kept, its outputs are taken to be these classes by index: {first}"
    is_other = not all(WORDNET_ID.match(name) or name.isdecimal() for name in class_names)
    if is_other and weights is not None and not is_path(weights):
        log.warning("%s; they are in the order of ImageNet only if their names are its ids (n01440764)", text)
    else:
        log.info("%s", text)


def _hyperparameters(content: Any) -> Mapping[str, Any]:
    """Return the arguments of the task in a checkpoint of this project; of other files an empty mapping."""
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def _load_file(file: Path) -> Any:
    """Load plain data and tensors, after a test of the checksums: torch.load would load a damaged tensor."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        if zipfile.is_zipfile(file):  # all but the older format of torch.save
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"the checksum of {damaged} does not match")
        with torch.serialization.safe_globals([Namespace]):  # the arguments of a script, which hold no code
            return torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ConfigError(
            f"model.weights={file} needs the package safetensors, which make setup installs; or use a .pth file."
        ) from error
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, pickle.UnpicklingError) and (match := re.search(r"GLOBAL (\S+)", str(error))):
            raise DataError(
                f"model.weights: {file} holds the object {match[1]} beside plain data and tensors: reading it could "
                "run code; save the weights alone, with torch.save(model.state_dict(), FILE)."
            ) from error
        first_sentence = re.split(r"\n|\. ", str(error))[0]
        reason = f"{type(error).__name__}: {first_sentence}"  # the text alone may be a number
        raise DataError(
            f"model.weights: {file} is damaged or not a file of weights ({reason}); copy it again, or use a "
            "state_dict in a .pth or .safetensors file."
        ) from error
