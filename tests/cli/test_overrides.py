"""What the user typed: passed on unharmed when it is a path, checked by type, and explained when it is wrong."""

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from imago.cli.messages import explain_composition_error
from imago.cli.overrides import (
    PATH_KEYS,
    check_complete,
    check_types,
    compose_defaults,
    loose_types,
    quote_paths,
)
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT

TREE = {
    "main.yaml": """
        defaults: [_self_, {data: shapes}, {model: small}, {optimizer: adamw}, {trainer: default}, {experiment: null}]
        seed: 0
        run_name: null
        note: null
        extra_targets: []
    """,
    "data/shapes.yaml": "{root: null, batch_size: 32, val_fraction: 0.1, shuffle: true}",
    "data/folder.yaml": "{root: '???', batch_size: '${seed}'}",
    "model/small.yaml": "{name: small, depth: 2}",
    "model/resnet18.yaml": "{name: resnet18, depth: 18}",
    "model/resnet50.yaml": "{name: resnet50, depth: 50, weights: null}",
    "optimizer/adamw.yaml": "{lr: 1.0e-3, betas: [0.9, 0.999]}",
    "optimizer/sgd.yaml": "{lr: 0.1, momentum: 0.9}",
    "trainer/default.yaml": "{max_epochs: 5, devices: 1, precision: auto, limit_train_batches: 1.0}",
    "experiment/good.yaml": "{defaults: [{override /optimizer: sgd}], optimizer: {lr: 0.3}}",
}

NASTY = [
    *("a b", "a,b", "a=b", "[a]", "{a: b}", "it's", 'say "hi"', "IMG (1).jpg", "Blüten/é", "50%", "a#b", "x\\", '\\"'),
    *("$HOME", "1", "true", " ", "C:\\new", "a\\\\", "a:b", "\tx"),
]


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, text in TREE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))
    header = "# @package _global_\n"
    experiment = folder / "experiment/good.yaml"
    experiment.write_text(header + experiment.read_text())
    return ConfigLoaderImpl(create_config_search_path(str(folder)))


def compose(loader, *overrides):
    return loader.load_configuration("main", list(overrides), run_mode=RunMode.RUN)


def as_job_gets_it(config):
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def check(loader, *overrides):
    check_types(compose(loader, *overrides), compose_defaults(loader, "main", overrides), overrides)


def explain(loader, *overrides):
    with pytest.raises(Exception) as caught:  # noqa: PT011  Hydra raises several kinds
        compose(loader, *overrides)
    text = explain_composition_error(caught.value, overrides, loader, "main")
    assert "\n" not in text
    assert "use +" not in text
    return text


# Paths


@pytest.mark.parametrize("value", NASTY)
def test_a_path_reaches_the_config_as_it_was_typed(loader, value):
    assert compose(loader, *quote_paths([f"data.root={value}"])).data.root == value


@pytest.mark.parametrize("value", NASTY)
def test_quoting_twice_is_quoting_once(value):
    once = quote_paths([f"input={value}"])
    assert quote_paths(once) == once


def test_every_path_key_is_quoted_also_behind_a_plus():
    arguments = [f"{plus}{key}=a b" for key in PATH_KEYS for plus in ("", "+", "++")]
    assert quote_paths(arguments) == [argument.replace("a b", '"a b"') for argument in arguments]


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(["data.root=~/flowers"]) == ['data.root="/home/me/flowers"']


@pytest.mark.parametrize(
    "argument",
    [
        *("-m", "--cfg", "job", "--help", "optimizer.lr=1,2", "data=a"),
        *("resume=null", "run_name=", "~data.root", "input='a b'", 'run="a b"'),
    ],
)
def test_everything_else_stays_as_it_was_typed(argument):
    assert quote_paths([argument]) == [argument]


@pytest.mark.parametrize("value", ["${seed}", "'${seed}'"])
def test_a_path_with_a_reference_is_refused(value):
    with pytest.raises(ConfigError, match=r"data\.root=.*\$\{"):
        quote_paths([f"data.root={value}"])


def test_the_plain_quotes_that_lightning_adds_for_its_ranks_are_mended(loader):
    argument = 'hydra.run.dir="/logs/say "hi""'
    assert compose(loader, *quote_paths([argument])).hydra.run.dir == '/logs/say "hi"'
    assert quote_paths(['hydra.run.dir="/logs/a b"']) == ['hydra.run.dir="/logs/a b"']


def test_a_path_is_one_value_also_in_a_sweep():
    [override] = OverridesParser.create().parse_overrides(quote_paths(["data.root=a,b"]))
    assert not override.is_sweep_override()


# Types


@pytest.mark.parametrize(
    ("override", "wants"),
    [
        ("optimizer.lr=abc", "a number"),
        ("seed=null", "a whole number"),
        ("trainer.max_epochs=2.5", "a whole number"),
        ("trainer.max_epochs=true", "a whole number"),
        ("data.batch_size=big", "a whole number"),
        ("data.shuffle=1", "true or false"),
        ("model.name=5", "text"),
        ("extra_targets=mynet", "a list"),
        ("trainer.precision=true", "text or a whole number"),
        ("trainer.limit_train_batches=all", "a whole number or a number or null"),
        ("++seed=x", "a whole number"),
    ],
)
def test_a_value_of_another_type_than_the_default_is_refused(loader, override, wants):
    with pytest.raises(ConfigError, match=rf"^{override.lstrip('+')}: wants {wants} \(the default is "):
        check(loader, override)


@pytest.mark.parametrize(
    "override",
    [
        *("optimizer.lr=1", "optimizer.lr=3e-4", "data.shuffle=false", "seed=-1", "optimizer.betas=[0,0.9]"),
        *("trainer.devices=2", "trainer.devices=[0,1]", "trainer.devices=auto", "trainer.precision=32"),
        *("trainer.limit_train_batches=4", "data.root=null", "run_name=x", "extra_targets=[mynet.*]"),
        *("note=3", "+new=3", "~seed", "experiment=good", "model=resnet50", "seed=${trainer.max_epochs}"),
    ],
)
def test_a_value_of_a_fitting_type_passes(loader, override):
    check(loader, override)


def test_all_wrong_values_are_named_at_once(loader):
    with pytest.raises(ConfigError) as caught:
        check(loader, "seed=null", "optimizer.lr=abc", "trainer.max_epochs=2.5", "data.batch_size=8")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "seed=null",
        "optimizer.lr=abc",
        "trainer.max_epochs=2.5",
    ]


def test_values_inside_lists_and_groups_are_checked(loader):
    with pytest.raises(ConfigError, match=r"optimizer\.betas\[1\]=x"):
        check(loader, "optimizer.betas=[0.9,x]")
    with pytest.raises(ConfigError, match=r"optimizer\.lr=abc"):
        check(loader, "optimizer={lr: abc}")


def test_types_come_from_the_chosen_option_and_the_experiment(loader):
    check(loader, "optimizer=sgd", "optimizer.momentum=0.5")
    with pytest.raises(ConfigError, match=r"optimizer\.momentum=big: .*default is 0\.9"):
        check(loader, "experiment=good", "optimizer.momentum=big")


SHIPPED = [path for path in sorted((PROJECT_ROOT / "configs").rglob("*.yaml")) if path.parent.name != "hydra"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_null_in_the_shipped_configs_says_what_else_it_may_be(path):
    group = path.parent.relative_to(PROJECT_ROOT / "configs").as_posix()
    root = "" if group == "." or "@package _global_" in path.read_text().partition("\n")[0] else f"{group}."
    tree = OmegaConf.to_container(OmegaConf.load(path))
    tree.pop("defaults", None)
    unlisted = [key for key in _nulls(tree, root) if loose_types(key) is None]
    assert unlisted == []


def _nulls(node, path):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _nulls(value, f"{path}{key}.")
        elif value is None:
            yield f"{path}{key}"


# Completeness


def test_every_open_value_is_named(loader):
    with pytest.raises(ConfigError, match=r"^data\.root: has no value yet; type it as data\.root=VALUE\.$"):
        check_complete(as_job_gets_it(compose(loader, "data=folder")))
    check_complete(as_job_gets_it(compose(loader, "data=folder", "data.root=x")))


def test_a_reference_that_leads_nowhere_names_its_key(loader):
    with pytest.raises(ConfigError, match=r"^note: .*'nope' not found$"):
        check_complete(as_job_gets_it(compose(loader, "note=${nope}")))


# Explanations


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("optimizer.lrr=1", "optimizer.lr"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("optimizr=sgd", "optimizer"),
        ("lr=1", "optimizer.lr"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("max_epochs=3", "trainer.max_epochs"),
        ("batchsize=3", "data.batch_size"),
        ("~optimizer.lrr", "optimizer.lr"),
        ("seed.x=3", "seed"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(loader, typed, nearest):
    key = typed.lstrip("~").partition("=")[0]
    assert explain(loader, typed) == f"{typed}: there is no setting '{key}'; did you mean {nearest}?"


def test_an_unknown_setting_like_no_other_is_answered_with_the_list(loader):
    assert "--cfg job" in explain(loader, "zzz=1")


def test_the_nearest_setting_is_sought_among_the_chosen_options(loader):
    assert "did you mean optimizer.momentum?" in explain(loader, "optimizer=sgd", "optimizer.momentm=0.9")


def test_an_unknown_option_is_answered_with_all_options_nearest_first(loader):
    assert explain(loader, "model=resnet81") == (
        "model=resnet81: there is no such option; model can be resnet18, resnet50, small."
    )
    assert explain(loader, "experiment=god").endswith("experiment can be good.")


def test_an_unknown_option_in_a_list_is_answered_likewise(loader):
    assert explain(loader, "model=[small,resnet81]") == (
        "model=resnet81: there is no such option; model can be resnet18, resnet50, small."
    )


@pytest.mark.parametrize("typed", ["model=null", "model=5"])
def test_a_group_without_an_option_is_answered_with_its_options(loader, typed):
    assert explain(loader, typed).startswith(f"{typed}: there is no such option; model can be ")


def test_a_broken_yaml_is_named_with_its_line(loader, tmp_path):
    (tmp_path / "main.yaml").write_text("seed: 0\nlr: ]\n")
    broken = ConfigLoaderImpl(create_config_search_path(str(tmp_path)))
    assert 'main.yaml", line 2' in explain(broken)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("optimizer.lr=1,2", "needs -m"),
        ("seed=range(1,3)", "needs -m"),
        ("+optimizer.lr=1", "without the +"),
        ("seed=a:b{", "two pairs of quotes"),
        ("resnet18", "did you mean model=resnet18?"),
        ("nonsense", "key=value"),
        ("hydra.job.chdir=abc", "not a valid bool"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(loader, typed, words):
    text = explain(loader, typed)
    assert text.startswith(typed.partition("=")[0])
    assert words in text
