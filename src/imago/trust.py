"""Check the targets of a checkpoint or run directory, which may be untrusted, before they are built.

What a user types or keeps in `configs/` is the user's own code and is not checked. A saved target must name a network
of torchvision or timm, or a class that is derived from the base class of its group and is defined in `src/` or listed
here. An allowed prefix would not be enough: `torchvision.models._api` contains functions that unpickle.
"""

import inspect
import sys
from collections.abc import Container, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imago.errors import ConfigError, DataError
from imago.instantiate import CONTROL_KEYS, import_target, import_target_or_none, target_nodes, to_plain
from imago.paths import PROJECT_ROOT

_SOURCE_DIR = PROJECT_ROOT / "src"

# Group of the settings -> base class of its targets. A nested target may have any of these base classes.
_BASES = {
    "model": "torch.nn.Module",
    "loss": "torch.nn.Module",
    "augment": "torch.nn.Module",
    "data": "lightning.pytorch.LightningDataModule",
    "task": "lightning.pytorch.LightningModule",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "torch.optim.lr_scheduler.LRScheduler",
    "metrics": "torchmetrics.Metric",
    "callbacks": "lightning.pytorch.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
    "trainer": "lightning.pytorch.Trainer",
}
_GROUPS_OF_SEVERAL = ("metrics", "callbacks", "logger")  # a mapping from names to targets
_NESTED_BASES = tuple(dict.fromkeys([*_BASES.values(), "torch.utils.data.Dataset"]))

# Public modules whose classes are harmless to build from plain arguments, each with the base class that they must have.
_PUBLIC_MODULES = {
    "torch.nn": "torch.nn.Module",
    "torch.optim": "torch.optim.Optimizer",
    "torch.optim.lr_scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "torchmetrics.classification": "torchmetrics.Metric",
    "torchvision.transforms.v2": "torchvision.transforms.v2.Transform",
}
_PUBLIC_NAMES = {
    "lightning.pytorch.Trainer",
    *(
        f"lightning.pytorch.callbacks.{name}"
        for name in ("ModelCheckpoint", "EarlyStopping", "LearningRateMonitor", "RichProgressBar", "TQDMProgressBar")
    ),
    *(
        f"lightning.pytorch.loggers.{name}"
        for name in ("TensorBoardLogger", "CSVLogger", "WandbLogger", "MLFlowLogger")
    ),
    # Not all of torchvision's: LSUN unpickles a file in its directory. The files of CIFAR are checked by their hash.
    *(f"torchvision.datasets.{name}" for name in ("ImageFolder", "FakeData", "CIFAR10", "CIFAR100", "MNIST")),
}
_LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "pytorch_lightning", "timm", "numpy", "scipy", "PIL",
              "sklearn", "pandas", "hydra", "omegaconf", "onnx", "onnxruntime", "joblib")  # fmt: skip
# Arguments of a network that name files or downloads; they are not needed, as a checkpoint has all weights.
_FILE_ARGUMENTS = ("pretrained", "weights", "checkpoint_path", "cache_dir")


def check_saved_targets(
    node: Any, path: str, source: Path, trust: Sequence[str] = (), known: Container[str] = ()
) -> None:
    """Check every `_target_` in settings that were saved.

    Args:
        node: settings of a group, as plain container or DictConfig; nothing in it is built.
        path: key path of `node`, such as "model" or "data"; it determines the base class.
        source: the file that the settings were read from, for the message.
        trust: packages or modules whose targets are accepted, as typed by the user; of the libraries that this project
            uses, only classes with the base class of their group, and what is named in full.
        known: further targets that are accepted, such as those of `configs/`.

    Raises:
        ConfigError: one line for each target that is refused.
    """
    refused = {}
    for where, settings in target_nodes(to_plain(node), path):
        target = settings["_target_"]
        is_trusted = _is_trusted(target, trust, _base_names(where))
        if not is_trusted and str(target) not in known and not _is_accepted(settings, _base_names(where)):
            refused[str(target)] = f"{source}: {where}._target_={target} {_reason(target, _base_names(where)[0])}"
    if refused:
        raise ConfigError("\n".join(refused.values()))


def _is_trusted(target: Any, trust: Sequence[str], base_names: Sequence[str]) -> bool:
    if not isinstance(target, str) or not any(f"{target}.".startswith(f"{package}.") for package in trust):
        return False
    if target in trust or target.partition(".")[0] not in _LIBRARIES:
        return True
    found = import_target_or_none(target)  # torch.hub.load is a function of a package that everybody trusts
    return inspect.isclass(found) and issubclass(found, tuple(map(import_target_or_none, base_names)))


def packages_to_trust(settings: Mapping[str, Any]) -> list[str]:
    """Return the packages that `trust` has to name before the model, data and metrics in these settings are built."""
    groups = {group: settings[group] for group in _BASES if group in settings and group != "task"}
    nodes = [found for group, node in groups.items() for found in target_nodes(to_plain(node), group)]
    names = [str(node["_target_"]) for where, node in nodes if not _is_accepted(node, _base_names(where))]
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _reason(target: Any, base_name: str) -> str:
    """Return why a target is refused, and the way out: only what can be a part of a network is worth trusting."""
    package = str(target).partition(".")[0]
    if (_SOURCE_DIR / package).is_dir():
        try:
            import_target(target)
        except ConfigError as error:
            return f"cannot be imported: {error} Restore the code."
    fault = f"is neither a {base_name.rpartition('.')[2]} of this project's src/ nor a known class"
    is_class = package in _LIBRARIES and inspect.isclass(import_target_or_none(target))
    if not package.isidentifier() or package in (*sys.stdlib_module_names, "imago", *_LIBRARIES) and not is_class:
        return f"{fault}; it was changed after saving."
    return f"{fault}; if you trust its source, type trust=[{package}]."


def without_files(settings: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return the settings of a saved network without the files that it would read or download.

    Raises:
        DataError: if an argument is not plain data.
    """
    plain = {}
    for key, value in settings.items():
        if not isinstance(value, (str, int, float, bool, list, tuple, dict, type(None))):
            raise DataError(
                f"{source}: the argument {key} of the network is not plain data; it was changed after saving."
            )
        if key not in CONTROL_KEYS or key == "_target_":
            plain[key] = None if str(key).startswith(_FILE_ARGUMENTS) else value
    return plain


def _base_names(where: str) -> Sequence[str]:
    """Return the names of the base classes that a target at this key path may have."""
    path = "model" if where in ("task.net", "task.teacher") else where.removeprefix("task.")
    group, _, rest = path.partition(".")
    is_top = not rest or (group in _GROUPS_OF_SEVERAL and "." not in rest)
    return [_BASES[group]] if group in _BASES and is_top else _NESTED_BASES


def _is_accepted(settings: Mapping[str, Any], base_names: Sequence[str]) -> bool:
    """Return whether a saved node names a published network, a class of `src/`, or a public class, with its base."""
    target = settings["_target_"]
    if not isinstance(target, str):
        return False
    module, _, name = target.rpartition(".")
    if "torch.nn.Module" in base_names and _is_published_network(module, name, settings):
        # `without_files` removes the files of the network itself, but not those of networks inside it
        is_nested = base_names is _NESTED_BASES
        return not (is_nested and any(value for key, value in settings.items() if key.startswith(_FILE_ARGUMENTS)))
    is_public = module in _PUBLIC_MODULES or target in _PUBLIC_NAMES
    if not is_public and not (_SOURCE_DIR / target.partition(".")[0]).is_dir():
        return False  # nothing is imported
    found = import_target_or_none(target)
    if not inspect.isclass(found):
        return False
    if base_names is _NESTED_BASES and not target.startswith("imago.") and _is_defined_here(found):
        return True  # a part that the user wrote, such as a transform
    if not issubclass(found, tuple(map(import_target_or_none, base_names))):
        return False
    if module in _PUBLIC_MODULES:
        return issubclass(found, import_target_or_none(_PUBLIC_MODULES[module]))
    return is_public or _is_defined_here(found)


def _is_defined_here(found: type) -> bool:
    """Return whether a class is defined in a file of a package in `src/`, and not only imported there."""
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    # A package in src/ may be a link to another directory.
    return file is not None and any(
        p.is_relative_to(_SOURCE_DIR) for p in (Path(file).absolute(), Path(file).resolve())
    )


def _is_published_network(module: str, name: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a target is a network function of torchvision, or builds a network of timm by its name."""
    if module == "torchvision.models":
        from torchvision import models

        return name in models.list_models(module=models)
    if (module, name) == ("timm", "create_model") and find_spec("timm"):
        import timm

        return isinstance(settings.get("model_name"), str) and timm.is_model(settings["model_name"])
    return False
