"""Values in the YAML of an experiment: they exist, and have the types of the groups that they override."""

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

from imago.cli.experiment import check_experiment
from imago.cli.overrides import compose_defaults
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT, register_resolvers

SHIPPED_EXPERIMENTS = sorted((PROJECT_ROOT / "configs").glob("experiment/*.yaml")) + sorted(
    (PROJECT_ROOT / "configs").glob("debug/*.yaml")
)


def check(loader, *overrides: str) -> None:
    check_experiment(compose_defaults(loader, "main", overrides), loader, "main", overrides)


@pytest.mark.parametrize("overrides", [("experiment=mistyped",), ("experiment=[good,mistyped]", "seed=2")])
def test_values_of_an_experiment_have_the_types_of_the_groups_that_it_overrides(loader, overrides: tuple[str, ...]):
    with pytest.raises(ConfigError) as caught:
        check(loader, *overrides)
    source = f"It is set by {overrides[0]}."
    assert set(str(caught.value).splitlines()) == {
        f"seed=1.5: expected a whole number (default: 0), got a number. {source}",
        f"data.root=5: expected text or null (default: null), got a whole number. {source}",
        f"data.batch_size=8.0: expected a whole number (default: 32), got a number. {source}",
        f"optimizer.momentum=[0.9]: expected a number (default: 0.9), got a list. {source}",
    }


def test_a_setting_of_an_experiment_that_does_not_exist_is_refused(loader):
    with pytest.raises(ConfigError) as caught:
        check(loader, "experiment=misspelled")
    source = "It is set by experiment=misspelled."
    assert set(str(caught.value).splitlines()) == {
        f"sed: there is no setting 'sed'; did you mean seed? {source}",
        f"optimiser: there is no setting 'optimiser'; did you mean optimizer? {source}",
    }


@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=good",),
        ("data=folder",),
        ("experiment=other_classes",),  # with arguments of other types, a group that is new, and one that is left out
        ("+extra=more", "experiment=good"),
    ],
)
def test_an_experiment_may_name_other_classes_and_further_groups(loader, overrides: tuple[str, ...]):
    check(loader, *overrides)


@pytest.mark.parametrize("path", SHIPPED_EXPERIMENTS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_the_shipped_experiments_have_values_of_fitting_types(path):
    register_resolvers()
    loader = ConfigLoaderImpl(create_config_search_path(str(PROJECT_ROOT / "configs")))
    overrides = [f"{path.parent.name}={path.stem}"]
    check_experiment(compose_defaults(loader, "train", overrides), loader, "train", overrides)
