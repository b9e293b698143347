"""Explain errors of Hydra and OmegaConf in one line each, with the nearest valid name."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imago.cli.arguments import TargetArguments
from imago.cli.overrides import NOT_GLOBAL, chosen_group, compose_defaults, explain_value
from imago.cli.signatures import read_signature
from imago.instantiate import to_plain
from imago.settings import flatten
from imago.text import join_names

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl


# Names of other templates and trainers -> what to type here: for the last part of a key, and for options of groups.
_KEYS_ELSEWHERE = {
    "ckpt_path": "resume=RUN continues a run, and src/eval.py run=RUN evaluates it",
    "hparams_search": "a sweep is typed -m with several values, e.g. -m optimizer.lr=1e-3,3e-3",
    "print_config": "--cfg job prints all settings",
    "learning_rate": "type optimizer.lr",
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "type trainer.max_epochs"),
    **dict.fromkeys(("gpus", "num_gpus"), "type trainer.devices"),
    "num_classes": "the number of classes follows from the data",
    "pretrained": "type model.weights=default",
    "fast_dev_run": "type debug=default",
    "default_root_dir": "type paths.log_dir=DIR or run_name=NAME",
}
_TWINS = {"optimizer.betas": "optimizer.momentum", "optimizer.momentum": "optimizer.betas"}
_OPTIONS_ELSEWHERE = {
    "data=imagenet": "data=image_folder data.root=DIR",
    "data=mnist": "data=torchvision data.name=MNIST",
    "loss=focal": "loss._target_=CLASS (CONTRIBUTING.md has the recipe)",
    "augment=mixup": "augment.mixup_alpha=0.2",
    "augment=cutmix": "augment.cutmix_alpha=1.0",
    "schedule=reduce_on_plateau": "schedule=plateau",
    "model=vit": "model=vit_b_16, or model=timm model.name=NAME",
    "trainer=debug": "debug=default",
}


def explain_composition_error(
    error: BaseException, argv: Sequence[str], loader: "ConfigLoaderImpl", config_name: str
) -> str:
    """Return one line for an error of Hydra or OmegaConf: the argument as typed, the problem and the remedy.

    Hydra's advice to add an unknown key with `+` is left out: for a typo it would only hide the error. The overrides
    `argv` and the primary config are those with which composing failed.
    """
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    text = " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError):
        directories = (Path(entry.path) for entry in loader.get_search_path().get_path() if entry.path)
        files = (file for directory in directories for file in directory.rglob("*.yaml"))
        found = next((file for file in files if "\ufffd" in file.read_text("utf-8", "replace")), "a YAML")
        return f"{found} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
    if isinstance(error, OverrideParseException):
        return _explain_unparsable(error.override, loader)
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group and (options := error.options or loader.get_group_options(group)):  # none for callbacks=[a,b]
            return _explain_option(group, option, options)
    if "Config group override must be a string" in text:  # model=null, which Hydra reports without the name
        for typed in argv:
            group, option = chosen_group(loader, typed), typed.partition("=")[2]
            if group and option not in (options := loader.get_group_options(group)):
                return _explain_option(group, option, options)
    if match := re.search(r"(?:Could not override|Could not delete from config\.) '([^']+)'", text):
        return explain_key(match[1], argv, loader, config_name)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'(?: 1\.| requires)", text):
        key, _, value = match[1].partition("=")
        return f"{match[1]}: several values are a sweep, which needs -m before them; one list is typed {key}=[{value}]."
    if match := re.search(r"In '((?:experiment|debug)/\S+)': .* for '\w+@(?:experiment|debug)\.", text):
        return f"{match[1].replace('/', '=', 1)}: {NOT_GLOBAL}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    return explain_value(cause) if isinstance(cause, OmegaConfBaseException) else text


def _explain_unparsable(override: str, loader: "ConfigLoaderImpl") -> str:
    key, equals, value = override.partition("=")
    if equals:
        return f"{override}: cannot be read; special characters need two pairs of quotes: '{key}=\"{value}\"'."
    groups = [group for group in loader.list_groups("") if override in loader.get_group_options(group)]
    return f"{override}: settings are typed key=value" + (f"; did you mean {groups[0]}={override}?" if groups else ".")


def _explain_option(group: str, option: str, options: Sequence[str]) -> str:
    is_network = group == "model" and "timm" in options
    more = f"; for other networks type model=torchvision model.name={option}" if is_network else ""
    # 0.5: `vit` is near to `vit_b_16`; our own choice.
    nearest = difflib.get_close_matches(option, options, cutoff=0.5)
    if meant := _OPTIONS_ELSEWHERE.get(f"{group}={option.lower()}"):
        more = f"; type {meant}"
        serving = re.findall(rf"^{group}=(\w+)", meant)
        nearest = [*serving, *(name for name in nearest if name not in serving)]
    elif longer := [name for name in nearest if option and name.startswith(option)]:
        more = f"; the nearest is {group}={min(longer)}"
    listed = ", ".join([*nearest, *sorted({*options} - {*nearest})])
    return f"{group}={option}: there is no such option; {group} can be {listed}{more}."


def explain_key(key: str, argv: Sequence[str], loader: "ConfigLoaderImpl", config_name: str) -> str:
    """Return one line for a key that no YAML and no target has, with the nearest one."""
    if loader.get_group_options(key):
        return f"{_argument(key, argv)}: this command has no options for {key!r}."
    if re.fullmatch(r"callbacks\.(best|last)_checkpoint\.(filename|save_\w+|every_n_\w+)", key):
        more = "add a callback with callbacks.NAME._target_=lightning.pytorch.callbacks.ModelCheckpoint for others"
        return f"{_argument(key, argv)}: best.ckpt and last.ckpt have fixed names, content and times; {more}."
    if key == "train":
        return f"{_argument(key, argv)}: there is no setting 'train'; src/eval.py run=RUN evaluates without training."
    if meant := _KEYS_ELSEWHERE.get(key.rpartition(".")[2]):
        return f"{_argument(key, argv)}: there is no setting {key!r}; {meant}."
    if key == "optimizer.name" and (name := _argument(key, argv).partition("=")[2]):
        return f"{_argument(key, argv)}: there is no setting {key!r}; type optimizer._target_=torch.optim.{name}."
    group, _, member = key.rpartition(".")[0].partition(".")
    if member in loader.get_group_options(group):
        return f"{_argument(key, argv)}: {member} is off; type {group}={member} too."
    if key.count(".") == 1 and (options := _options_with(group, key.partition(".")[2], loader)):
        twin = _TWINS.get(key)
        here = f"; here it is {twin}" if twin in _known_keys(key, argv, loader, config_name) else ""
        return f"{_argument(key, argv)}: there is no setting {key!r} here; it is one of {', '.join(options)}{here}."
    known = _known_keys(key, argv, loader, config_name) - {name for name in (group,) if loader.get_group_options(name)}
    return f"{_argument(key, argv)}: there is no setting {key!r}; {_nearest_key(key, known)}"


def _nearest_key(key: str, known: set[str]) -> str:
    """Return a hint: the nearest key, else the other keys of the same node, else how to list all."""
    node = key.rpartition(".")[0]
    siblings = [name for name in known if re.fullmatch(rf"{re.escape(node)}\.[a-z]\w*", name)]

    def score(name: str) -> float:  # `batchsize` is near to `data.batch_size`
        last_names = (text.rpartition(".")[2] for text in (key, name))
        whole = _similarity(key, name)
        # The last name has a weight of 0.9, the whole key of 0.1; our own choice.
        weighted = 0.9 * _similarity(*last_names) + 0.1 * whole
        return weighted if name in siblings else max(whole, weighted)

    best = max(sorted(known - {node} if siblings else known), key=score)
    if score(best) > 0.7:  # a lower limit would suggest unrelated keys; our own choice
        return f"did you mean {best}?"
    names = sorted(name.removeprefix(f"{node}.") for name in siblings)
    return f"{node} has {join_names(names)}." if names else "--cfg job prints all of them."


def _options_with(group: str, name: str, loader: "ConfigLoaderImpl") -> list[str]:
    """Return the options of a group that have a setting of this name, in their YAML or as an argument of its target."""
    found = []
    for option in sorted(loader.get_group_options(group)):
        config = loader.repository.load_config(f"{group}/{option}")
        node = to_plain(config.config, resolve=False) if config else {}
        signature = read_signature(str(node.get("_target_")))
        if name in node or (signature and name in signature.types):
            found.append(f"{group}={option}")
    return found


def _argument(key: str, argv: Iterable[str]) -> str:
    return next((text for text in argv if text.lstrip("+~").partition("=")[0] == key), key)


def _similarity(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, word, other).ratio()


def _known_keys(key: str, argv: Iterable[str], loader: "ConfigLoaderImpl", config_name: str) -> set[str]:
    """Return the keys of all settings, and the arguments of the node of `key`; without one, of two common nodes."""
    try:
        settings = to_plain(compose_defaults(loader, config_name, argv), resolve=False)
    except Exception:  # a second invalid setting, among the choices
        settings = to_plain(compose_defaults(loader, config_name, ()), resolve=False)
    names = [known.split(".") for known in flatten(settings) if not known.startswith("hydra.")]
    known = {".".join(parts[:end]) for parts in names for end in range(1, len(parts) + 1)}
    known.update(loader.list_groups(""))
    typed = {text.lstrip("+").partition("=")[0]: text.partition("=")[2] for text in argv}
    nodes = TargetArguments(settings, typed)
    for node in [key.rpartition(".")[0]] if "." in key else ["trainer", "optimizer"]:
        known.update(f"{node}.{argument}" for argument in nodes.arguments(node))
    return known
