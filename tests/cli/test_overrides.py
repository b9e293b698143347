"""Typed settings: paths reach the config unchanged, other values must have the type of their default."""

import re
from types import NoneType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from imago.cli.overrides import (
    PATH_KEYS,
    accepted_types,
    check_complete,
    check_group_choices,
    check_types,
    compose_defaults,
    quote_paths,
)
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT

SPECIAL_NAMES = [
    *("a b", "a,b", "a=b", "[a]", "{a: b}", "it's", 'say "hi"', "IMG (1).jpg", "Blüten/é", "50%", "a#b", "x\\", '\\"'),
    *("$HOME", "1", "true", " ", "C:\\new", "a\\\\", "a:b", "\tx"),
]


def compose(loader, *overrides):
    return loader.load_configuration("main", list(overrides), run_mode=RunMode.RUN)


def check(loader, *overrides):
    check_types(compose(loader, *overrides), compose_defaults(loader, "main", overrides), overrides)


# Paths


@pytest.mark.parametrize("value", SPECIAL_NAMES)
def test_a_path_reaches_the_config_as_typed_and_is_quoted_only_once(loader, value):
    once = quote_paths([f"data.root={value}"])
    assert compose(loader, *once).data.root == value
    assert quote_paths(once) == once


def test_every_path_key_is_quoted_also_after_a_plus():
    arguments = [f"{plus}{key}=a b" for key in PATH_KEYS for plus in ("", "+", "++")]
    assert quote_paths(arguments) == [argument.replace("a b", '"a b"') for argument in arguments]


def test_the_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(["data.root=~/flowers"]) == ['data.root="/home/me/flowers"']


@pytest.mark.parametrize(
    "argument",
    [
        *("-m", "--cfg", "job", "--help", "optimizer.lr=1,2", "data=a"),
        *("resume=null", "run_name=", "~data.root", "input='a b'", 'run="a b"'),
    ],
)
def test_other_arguments_are_unchanged(argument):
    assert quote_paths([argument]) == [argument]


@pytest.mark.parametrize("value", ["${seed}", "'${seed}'"])
def test_a_path_with_an_interpolation_is_refused(value):
    with pytest.raises(ConfigError, match=r"data\.root=.*\$\{"):
        quote_paths([f"data.root={value}"])


def test_the_quotes_that_lightning_adds_for_its_ranks_are_escaped(loader):
    argument = 'hydra.run.dir="/logs/say "hi""'
    assert compose(loader, *quote_paths([argument])).hydra.run.dir == '/logs/say "hi"'
    assert quote_paths(['hydra.run.dir="/logs/a b"']) == ['hydra.run.dir="/logs/a b"']


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("data.root=a b,c=d", ["a b", "c=d"]),
        ("model.weights=null,it's,default", [None, "it's", "default"]),
        ("run='a,b', c", ["a,b", "c"]),
        ("+run='a,b'", ["a,b"]),
        ("task.teacher=a", ["a"]),
    ],
)
def test_a_comma_separates_paths_in_a_sweep_unless_it_is_quoted(typed: str, values: list):
    for flag in ("-m", "--multirun"):
        once = quote_paths([flag, typed])
        assert quote_paths(once) == once
        [override] = OverridesParser.create().parse_overrides(once[1:])
        assert override.is_sweep_override() == (len(values) > 1)
        assert [
            getattr(value, "text", value) for value in getattr(override._value, "list", [override._value])
        ] == values
    [override] = OverridesParser.create().parse_overrides(quote_paths([typed]))
    assert not override.is_sweep_override()


# Types


@pytest.mark.parametrize(
    "problems",
    [
        {
            "optimizer.lr=abc": "a number",
            "seed=null": "a whole number",
            "trainer.max_epochs=2.5": "a whole number or null",
            "data.batch_size=big": "a whole number",
            "data.shuffle=1": "true or false",
            "model.name=5": "text",
            "trust=mynet": "a list",
            "trainer.precision=true": "text or a whole number",
            "trainer.limit_train_batches=all": "a whole number or a number or null",
        },
        {"trainer.max_epochs=true": "a whole number or null", "++seed=x": "a whole number"},
    ],
)
def test_values_of_other_types_than_the_defaults_are_reported_together(loader, problems: dict[str, str]):
    with pytest.raises(ConfigError) as caught:
        check(loader, *problems)
    lines = [line.partition(" (default: ")[0] for line in str(caught.value).splitlines()]
    assert lines == [f"{typed.lstrip('+')}: expected {wanted}" for typed, wanted in problems.items()]


@pytest.mark.parametrize("key", ["metrics.f1", "callbacks.rate", "logger.csv"])
def test_one_of_several_is_left_out_by_null(key: str):
    assert accepted_types(key) == (dict, NoneType)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.lr=1", "data.shuffle=false", "seed=-1", "optimizer.betas=[0,0.9]", "trainer.devices=2"),
        ("optimizer.lr=3e-4", "trainer.devices=[0,1]", "trainer.precision=32", "trainer.limit_train_batches=4"),
        ("trainer.devices=auto", "data.root=null", "run_name=x", "trust=[mynet]", "note=3", "+new=3"),
        ("~seed", "experiment=good", "model=resnet50"),
        ("seed=${trainer.max_epochs}",),
    ],
)
def test_values_of_fitting_types_pass(loader, overrides: tuple[str, ...]):
    check(loader, *overrides)


def test_values_inside_lists_and_groups_are_checked(loader):
    with pytest.raises(ConfigError, match=r"optimizer\.betas\[1\]=x"):
        check(loader, "optimizer.betas=[0.9,x]")
    with pytest.raises(ConfigError, match=r"optimizer\.lr=abc"):
        check(loader, "optimizer={lr: abc}")


def test_types_come_from_the_chosen_option_and_the_experiment(loader):
    check(loader, "optimizer=sgd", "optimizer.momentum=0.5")
    with pytest.raises(ConfigError, match=r"optimizer\.momentum=big: .*default: 0\.9"):
        check(loader, "experiment=good", "optimizer.momentum=big")


# serve.yaml is read without Hydra, see `imago.serve.settings`.
SHIPPED = [
    path
    for path in sorted((PROJECT_ROOT / "configs").rglob("*.yaml"))
    if path.parent.name != "hydra" and path.name != "serve.yaml"
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_types_of_every_null_in_the_shipped_configs_are_listed(path):
    group = path.parent.relative_to(PROJECT_ROOT / "configs").as_posix()
    root = "" if group == "." or "@package _global_" in path.read_text().partition("\n")[0] else f"{group}."
    tree = OmegaConf.to_container(OmegaConf.load(path))
    tree.pop("defaults", None)
    unlisted = [key for key in _nulls(tree, root) if accepted_types(key) is None]
    assert unlisted == []


def _nulls(node, path):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _nulls(value, f"{path}{key}.")
        elif value is None:
            yield f"{path}{key}"


# Completeness


def as_job_config(loader, *overrides):
    config = compose(loader, *overrides)
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


@pytest.mark.parametrize("argument", ["data=[]", "optimizer=[null]", "model=[ ]", "hydra=[]", "paths=[]"])
def test_a_group_that_every_run_needs_cannot_be_left_out(argument: str):
    with pytest.raises(ConfigError, match=rf"^{re.escape(argument)}: a run needs this group; choose one of \w+"):
        check_group_choices([argument])
    check_group_choices(["callbacks=[]", "logger=[]", "metrics=[]", "model=simple_cnn", "seed=[]", "-m", "=[]"])


@pytest.mark.parametrize("argument", ["loss=[1]", "callbacks=[ema,2]"])
def test_a_number_among_the_options_of_a_group_is_refused(argument: str):
    with pytest.raises(ConfigError, match=rf"^{re.escape(argument)}: expected names of \w+, such as .*, got numbers"):
        check_group_choices([argument])


def test_every_missing_value_is_reported(loader):
    with pytest.raises(ConfigError, match=r"^data\.root has no value; type data\.root=VALUE\.$"):
        check_complete(as_job_config(loader, "data=folder"))
    check_complete(as_job_config(loader, "data=folder", "data.root=x"))


def test_an_interpolation_that_cannot_be_resolved_is_reported_with_its_key(loader):
    with pytest.raises(ConfigError, match=r"^note: .*'nope' not found$"):
        check_complete(as_job_config(loader, "note=${nope}"))
