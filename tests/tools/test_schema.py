"""The schemas accept every file of configs/ and mark what is wrong in one."""

import json
from typing import Any

import jsonschema
import pytest
import schema
import yaml

from imago.paths import PROJECT_ROOT


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The schema of each group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "OUTPUT", tmp_path_factory.mktemp("schema"))
        files = schema.write_all()
        return {
            name: (json.loads((schema.OUTPUT / name.rpartition("/")[2]).read_text()), paths)
            for name, paths in files.items()
        }


def test_every_file_is_valid(written: dict[str, Any]):
    paths = [path for _, paths in written.values() for path in paths]
    assert {"configs/train.yaml", "configs/optimizer/adamw.yaml", "configs/trainer/gpu.yaml"} < {*paths}
    for content, paths in written.values():
        for path in paths:
            jsonschema.validate(yaml.safe_load((PROJECT_ROOT / path).read_text()) or {}, content)


@pytest.mark.parametrize(
    ("group", "text", "is_valid"),
    [
        ("optimizer", "{_target_: torch.optim.AdamW, lr: 0.1, betas: [0.9, 0.95]}", True),
        ("optimizer", "{_target_: torch.optim.AdamW, lrr: 0.1}", False),
        ("optimizer", "{_target_: torch.optim.AdamW, eps: small}", False),
        ("optimizer", "{_target_: torch.optim.AdamW, eps: '${seed}'}", True),
        ("optimizer", "{_target_: mynet.Lion, momentums: 3}", True),
        ("trainer", "{defaults: [default], max_steps: 5}", True),
        ("trainer", "{_target_: lightning.pytorch.Trainer, max_step: 5}", False),
    ],
)
def test_a_key_or_value_that_a_target_does_not_take_is_marked(
    written: dict[str, Any], group: str, text: str, is_valid: bool
):
    validator = jsonschema.Draft7Validator(written[f"build/schema/{group}.json"][0])
    assert validator.is_valid(yaml.safe_load(text)) == is_valid


def test_comments_are_descriptions(written: dict[str, Any]):
    trainer = json.dumps(written["build/schema/trainer.json"][0])
    assert "all GPUs); the batch is split over the devices" in trainer
