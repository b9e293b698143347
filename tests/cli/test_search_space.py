"""The search space of a sweep: values, intervals, conditions and repetitions."""

from itertools import product
from typing import Any

import optuna
import pytest

from imago.cli.search_space import parse_space
from imago.errors import ConfigError
from imago.sweep.space import Parameter


def parse(*arguments: str, **space: Any):
    return parse_space(arguments, space, None)


def test_a_grid_has_every_combination_in_the_order_of_hydra():
    space = parse("optimizer.lr=1e-3,3e-3", "epochs=3", "model.width=range(16,64,16)")
    expected = [
        {"optimizer.lr": lr, "model.width": width} for lr, width in product(("0.001", "0.003"), ("16", "32", "48"))
    ]
    assert list(space.combinations()) == expected
    assert space.fixed == ("epochs=3",)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("lr=interval(0.1,1)", Parameter("lr", low=0.1, high=1.0)),
        ("lr=tag(log, interval(1e-4, 1e-1))", Parameter("lr", low=1e-4, high=1e-1, is_log=True)),
        ("n=int(interval(1, 8))", Parameter("n", low=1, high=8)),
        ("lr=choice(0.1,0.2)", Parameter("lr", ("0.1", "0.2"))),
        ("+x.y='a,b',c", Parameter("+x.y", ("'a,b'", "c"))),
        ("size=[32,32],[64,64]", Parameter("size", ("[32,32]", "[64,64]"))),
        ("lr=1,1,2", Parameter("lr", ("1", "2"))),
    ],
)
def test_values_are_read_as_typed(argument: str, expected: Parameter):
    assert parse(argument).parameters == (expected,)


def test_values_of_a_yaml_are_read_as_typed_ones_and_replaced_by_them():
    space = parse("lr=1,2", lr="5,6", width=[16, 32], drop=[None, True], fixed=3)
    assert [(parameter.key, parameter.choices) for parameter in space.parameters] == [
        ("lr", ("1", "2")), ("width", ("16", "32")), ("drop", ("null", "True")), ("fixed", ("3",)),
    ]  # fmt: skip
    assert parse("lr=7", lr="5,6").parameters == ()


def test_a_condition_leaves_a_setting_out_of_the_other_combinations():
    space = parse(**{"optimizer": "adamw,sgd", "lr": {"optimizer=adamw": "1,2", "optimizer=sgd": "10"}})
    overrides = [{name.partition(" ")[0]: value for name, value in values.items()} for values in space.combinations()]
    assert overrides == [
        {"optimizer": "adamw", "lr": "1"}, {"optimizer": "adamw", "lr": "2"}, {"optimizer": "sgd", "lr": "10"},
    ]  # fmt: skip


def test_a_typed_setting_keeps_its_position_so_that_conditions_on_it_apply():
    space = {"optimizer": "adamw,sgd", "lr": {"optimizer=adamw": "1,2", "optimizer=sgd": "10"}}
    found = list(parse("optimizer=adamw,muon", **space).combinations())
    assert [values.get("lr (optimizer=adamw)") for values in found] == ["1", "2", None]
    assert list(parse("optimizer=sgd", **space).combinations()) == [{"lr (optimizer=sgd)": "10"}]


@pytest.mark.parametrize(
    "space",
    [
        {"optimizer": "adamw,sgd", "lr": {"optimzer=adamw": "1,2"}},
        {"optimizer": "adamw,sgd", "lr": {"optimizer=sdg": "1,2"}},
        {"lr": {"optimizer=sgd": "1,2"}, "optimizer": "adamw,sgd"},  # in the wrong order
    ],
)
def test_a_condition_that_is_never_met_is_refused(space: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"sweep.space: lr \(.*which would never be searched"):
        parse(**space)


def test_a_condition_may_be_about_a_setting_that_is_only_typed():
    space = {"lr": {"optimizer=adamw": "1,2", "optimizer=sgd": "10"}}
    assert len(list(parse("optimizer=adamw,sgd", **space).combinations())) == 3
    assert list(parse("wd=1e-1", lr={"wd=0.1": "1", "wd=0.2": "2"}).combinations()) == [{"lr (wd=0.1)": "1"}]


def test_a_condition_on_a_number_may_be_written_in_another_way():
    assert len(list(parse(wd="1e-1,1e-2", lr={"wd=1e-1": "1,2"}).combinations())) == 3


def test_a_repetition_has_no_condition_and_a_directory_one_value():
    with pytest.raises(ConfigError, match=r"a repetition \(seed, data.fold\) has no condition"):
        parse(seed={"a=1": "1,2"}, a="1,2")
    with pytest.raises(ConfigError, match="a directory of all runs has one value"):
        parse("paths.log_dir='/a','/b'")


@pytest.mark.parametrize(("low", "high"), [(0.99991, 0.99999), (1e-5, 1e-1), (-2.0, 3.0)])
def test_values_of_an_interval_lie_within_it_and_differ(low: float, high: float):
    parameter = Parameter("x", low=low, high=high)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = [float(parameter.suggest(study.ask())) for _ in range(50)]
    assert low <= min(values) < max(values) <= high
    assert len(set(values)) == 50


def test_each_condition_has_its_own_interval_in_a_study():
    space = parse(
        **{"optimizer": "adamw,sgd", "lr": {"optimizer=adamw": "interval(1,2)", "optimizer=sgd": "interval(10,20)"}}
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    chosen = [dict(text.split("=") for text in space.suggest(study.ask())) for _ in range(20)]
    ranges = {"adamw": (1, 2), "sgd": (10, 20)}
    assert {values["optimizer"] for values in chosen} == {"adamw", "sgd"}
    assert all(low <= float(values["lr"]) <= high for values in chosen for low, high in [ranges[values["optimizer"]]])


def test_seeds_and_folds_are_repetitions_of_a_setting():
    space = parse("lr=1,2", "seed=1,2", "data.fold=range(3)")
    assert [parameter.key for parameter in space.parameters] == ["lr"]
    assert space.repeats == tuple(product(("seed=1", "seed=2"), ("data.fold=0", "data.fold=1", "data.fold=2")))
    assert parse("lr=1,2", "seed=5").repeats == ((),)


def test_the_first_run_of_a_space_has_the_first_values():
    space = parse("a=1,2", "b=interval(0.5,1)", "seed=3,4", "c=x", d={"a=2": "1,2"})
    assert space.first({}) == ["c=x", "a=1", "b=0.5", "seed=3"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("lr=interval(2,1)",), "from a number to a larger one"),
        (("lr=tag(log,interval(0,1))",), "above 0"),
        (("lr=interval(0,inf)",), "to a larger one"),
        (("lr=tag(lgo,interval(1,2))",), "there is no tag lgo"),
    ],
)
def test_an_empty_interval_is_refused(arguments: tuple[str, ...], text: str):
    with pytest.raises(ConfigError, match=text):
        parse(*arguments)


def test_an_interval_is_refused_in_a_grid_and_broken_values_of_a_yaml_are_named():
    with pytest.raises(ConfigError, match=r"lr: an interval has no combinations; type sweep=random"):
        list(parse("lr=interval(1,2)").combinations())
    with pytest.raises(ConfigError, match=r"sweep.space: lr: interval\(1 are no values"):
        parse(lr="interval(1")
