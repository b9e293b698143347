"""A small config tree, and Hydra's loader for it."""

import textwrap

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

TREE = {
    "main.yaml": """
        defaults: [_self_, {data: shapes}, {model: small}, {optimizer: adamw}, {trainer: default}, {experiment: null}]
        seed: 0
        run_name: null
        sweep_name: null
        note: null
        trust: []
    """,
    "data/shapes.yaml": "{root: null, batch_size: 32, val_fraction: 0.1, shuffle: true}",
    "data/folder.yaml": "{root: '???', batch_size: '${seed}'}",
    "model/small.yaml": "{_target_: imago.model.Small, name: small, depth: 2}",
    "model/resnet18.yaml": "{name: resnet18, depth: 18}",
    "model/resnet50.yaml": "{name: resnet50, depth: 50, weights: null}",
    "optimizer/adamw.yaml": "{lr: 1.0e-3, betas: [0.9, 0.999]}",
    "optimizer/sgd.yaml": "{lr: 0.1, momentum: 0.9}",
    "trainer/default.yaml": "{max_epochs: 5, devices: 1, precision: auto, limit_train_batches: 1.0}",
    "experiment/good.yaml": "# @package _global_\n{defaults: [{override /optimizer: sgd}], optimizer: {lr: 0.3}}",
    "experiment/misspelled.yaml": """
        # @package _global_
        sed: 7
        optimiser: {lr: 0.5}
        own: 3
        optimizer: {lr: '${own}'}
    """,
    "extra/more.yaml": "{value: 1}",
    "experiment/other_classes.yaml": """
        # @package _global_
        defaults: [/extra: more, {override /trainer: null}]
        model: {_target_: mynet.Own, name: 3, depth: [2, 2]}
    """,
    "experiment/mistyped.yaml": """
        # @package _global_
        defaults: [{override /optimizer: sgd}, {override /model: resnet50}]
        seed: 1.5
        data: {root: 5, batch_size: 8.0, val_fraction: 1}
        optimizer: {momentum: [0.9], betas: none}
        model: {weights: null, depth: '${seed}'}
        trainer: {max_epochs: null, limit_train_batches: 3}
    """,
}


@pytest.fixture(scope="session")
def config_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("configs")
    for name, text in TREE.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(textwrap.dedent(text).lstrip())
    return directory


@pytest.fixture(scope="session")
def loader(config_dir):
    return ConfigLoaderImpl(create_config_search_path(str(config_dir)))
