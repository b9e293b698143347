"""Errors of Hydra and OmegaConf are explained in one line, with the nearest valid name."""

import re
import shutil

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode

from imago.cli.messages import explain_composition_error, explain_key
from imago.cli.overrides import check_complete, compose
from imago.errors import ConfigError
from imago.paths import PROJECT_ROOT


def explain(loader, *overrides, name="main"):
    with pytest.raises(Exception) as caught:  # noqa: PT011  Hydra raises several kinds
        loader.load_configuration(name, list(overrides), run_mode=RunMode.RUN)
    text = explain_composition_error(caught.value, overrides, loader, name)
    assert "\n" not in text
    assert "use +" not in text
    return text


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
def test_an_unknown_setting_suggests_the_nearest_one(loader, typed, nearest):
    key = typed.lstrip("~").partition("=")[0]
    assert explain(loader, typed) == f"{typed}: there is no setting '{key}'; did you mean {nearest}?"


def test_an_unknown_setting_without_a_near_one_suggests_the_list(loader):
    assert "--cfg job" in explain(loader, "zzz=1")


def test_the_nearest_setting_is_searched_in_the_chosen_options(loader):
    assert "did you mean optimizer.momentum?" in explain(loader, "optimizer=sgd", "optimizer.momentm=0.9")


@pytest.mark.parametrize("typed", ["model=resnet81", "model=[small,resnet81]"])
def test_an_unknown_option_lists_all_options_nearest_first(loader, typed):
    assert explain(loader, typed) == (
        "model=resnet81: there is no such option; model can be resnet18, resnet50, small."
    )


@pytest.mark.parametrize("typed", ["model=null", "model=5"])
def test_a_group_without_an_option_lists_its_options(loader, typed):
    assert explain(loader, typed).startswith(f"{typed}: there is no such option; model can be ")


def test_a_setting_of_another_option_has_its_twin_here():
    line = explain_key("optimizer.betas", ["optimizer=sgd", "optimizer.betas=[0.9,0.99]"], REAL, "train")
    assert line.endswith("; here it is optimizer.momentum.")


REAL = ConfigLoaderImpl(create_config_search_path(str(PROJECT_ROOT / "configs")))


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("trainer.max_step=3", "did you mean trainer.max_steps?"),
        ("max_steps=3", "did you mean trainer.max_steps?"),
        ("ckpt_path=x", "no setting 'ckpt_path'; resume=RUN continues a run, and src/eval.py run=RUN evaluates it."),
        ("extras.print_config=true", "--cfg job prints all settings."),
        ("model.pretrained=true", "type model.weights=default."),
        ("train=false", "no setting 'train'; src/eval.py run=RUN evaluates without training."),
        ("data.train=x", "there is no setting 'data.train' here; it is one of data=dataset."),
        ("loss.gamma=2", "there is no setting 'loss.gamma'; loss has "),
        (
            "preprocess.foo=1",
            "no setting 'preprocess.foo'; preprocess has crop, interpolation, mean, resize, size, std.",
        ),
        ("optimizer.name=SparseAdam", "type optimizer._target_=torch.optim.SparseAdam."),
        ("extras.fast_dev_run=true", "type debug=default."),
        (
            "optimizer.betas=[0.9,0.99]",
            "no setting 'optimizer.betas' here; it is one of optimizer=adam, optimizer=adamw, ",
        ),
        ("schedule.every_epochs=0.1", "it is one of schedule=step."),
        ("data.list_file=a.csv", "it is one of data=image_list."),
        ("expriment=quickstart", "did you mean experiment?"),
        ("optimizer.beta=[0.9,0.9]", "did you mean optimizer.betas?"),
        ("data.val_fractoin=0.2", "did you mean data.val_fraction?"),
        ("callbacks.early_stopping.patience=3", "early_stopping is off; type callbacks=early_stopping too."),
        ("logger.wandb.project=x", "wandb is off; type logger=wandb too."),
        ("callbacks.best_checkpoint.filename=x", "best.ckpt and last.ckpt have fixed names"),
        ("callbacks.last_checkpoint.every_n_epochs=2", "best.ckpt and last.ckpt have fixed names"),
    ],
)
def test_arguments_of_targets_are_among_the_nearest(typed, answer):
    key = typed.partition("=")[0]
    line = explain_key(key, [typed], REAL, "train")
    assert line.startswith(f"{typed}: ")
    assert answer in line


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("data=imagenet", "type data=image_folder data.root=DIR."),
        ("data=imagenet", "data can be image_folder, "),
        ("data=mnist", "data can be torchvision, "),
        ("model=resnet", "; the nearest is model=resnet18."),
        ("data=MNIST", "type data=torchvision data.name=MNIST."),
        ("augment=mixup", "type augment.mixup_alpha=0.2."),
        ("schedule=reduce_on_plateau", "type schedule=plateau."),
        ("loss=focal", "type loss._target_=CLASS"),
        ("trainer=debug", "type debug=default."),
        ("model=vit", "model can be vit_b_16, cifar_quick, convnext_tiny, efficientnet_b0, "),
        ("model=vit", "; type model=vit_b_16, or model=timm model.name=NAME."),
        ("model=resnet101", "; for other networks type model=torchvision model.name=resnet101."),
        ("debug=fdr", "debug can be default, limit, overfit, profiler."),
    ],
)
def test_options_of_other_templates_are_answered_with_what_to_type(typed, answer):
    assert answer in explain(REAL, typed, name="train")


def test_a_broken_yaml_is_reported_with_its_line(loader, tmp_path):
    (tmp_path / "main.yaml").write_text("seed: 0\nlr: ]\n")
    broken = ConfigLoaderImpl(create_config_search_path(str(tmp_path)))
    assert 'main.yaml", line 2' in explain(broken)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("optimizer.lr=1,2", "needs -m"),
        ("seed=range(1,3)", "needs -m"),
        ("seed=a:b{", "two pairs of quotes"),
        ("resnet18", "did you mean model=resnet18?"),
        ("nonsense", "key=value"),
        ("hydra.job.chdir=abc", "not a valid bool"),
    ],
)
def test_an_argument_that_cannot_be_read_is_repeated_with_the_way_out(loader, typed, words):
    text = explain(loader, typed)
    assert text.startswith(typed.partition("=")[0])
    assert words in text


@pytest.mark.parametrize(
    "text", ["defaults: [{override /optimizer: sgd}]\noptimizer: {lr: 0.3}", "optimizer: {lr: 0.3}\nseed: 5"]
)
def test_a_comment_before_the_package_of_an_experiment_is_named(tmp_path, config_dir, text: str):
    """Without the check, the second one would be ignored: its values would stand below `experiment`."""
    shutil.copytree(config_dir, tmp_path / "configs")
    experiment = tmp_path / "configs" / "experiment" / "mine.yaml"
    loader = ConfigLoaderImpl(create_config_search_path(str(tmp_path / "configs")))
    experiment.write_text(f"# @package _global_\n# Mine.\n{text}")
    assert compose(loader, "main", ["experiment=mine"]).optimizer.lr == 0.3
    experiment.write_text(f"# Mine.\n# @package _global_\n{text}")
    typed = ["experiment=mine"]
    try:
        check_complete(compose(loader, "main", typed))
    except ConfigError as error:
        line = str(error)
    except Exception as error:  # of Hydra
        line = explain_composition_error(error, typed, loader, "main")
    assert re.fullmatch(r"experiment(=mine)?: the first line of its YAML.* must be '# @package _global_'\.", line)


@pytest.mark.parametrize("content", ["# caf\xe9\n{lr: 0.1}".encode("latin-1"), "{lr: 0.1}".encode("utf-16")])
def test_a_yaml_that_is_not_utf8_is_named(config_dir, tmp_path, content: bytes):
    copied = shutil.copytree(config_dir, tmp_path / "configs")
    (copied / "optimizer" / "mine.yaml").write_bytes(content)
    fault = explain(ConfigLoaderImpl(create_config_search_path(str(copied))), "optimizer=mine")
    assert fault.startswith(f"{copied}/optimizer/mine.yaml is not UTF-8 text (")
