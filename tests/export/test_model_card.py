"""`report.py card=true` writes a directory that the Hub can take, and `push=` uploads exactly that."""

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import Hub, hub_server
from omegaconf import DictConfig
from run_folders import make_evaluation, make_run
from short_runs import summary

from imago.errors import ConfigError, DataError, UserError
from imago.export import model_card
from imago.export.model_card import _exported, _numbers, _public, _write_card, write_model
from imago.files import sha256_of
from imago.images import Preprocess
from imago.inference.calibration import calibrate
from imago.model.adapt import build_network
from imago.model.classifier import Classifier
from imago.runs.records import read_record
from imago.statistics.metrics import LabeledOutputs

NASTY = ("a|b\n---\n# c", "<script>alert(1)</script>", "![x](http://y.z/t.png) `code` $$x$$ **_bold_** &amp;")
ROBUST = {
    "clean_acc": 0.75,
    "mean_corrupted_acc": 0.5,
    "mean_corrupted_acc_interval": [0.25, 0.625],
    "num_images": 1234,
    "corruptions": {
        "gaussian_noise": {
            "acc": [0.7, 0.6, 0.5, 0.4, 0.3],
            "acc_interval": [[0.65, 0.75]] * 5,
            "calibration_error": [0.1, 0.2, 0.3, 0.4, 0.5],
        }
    },
}
UNKNOWN = {"data": "CIFAR100", "num_known": 100, "num_unknown": 2000, "auroc": 0.875, "auroc_interval": [0.86, 0.89]}


@pytest.fixture
def settings(compose: Callable) -> Callable[..., DictConfig]:
    def run(**changes: object) -> DictConfig:
        cfg = compose(config_name="report")
        for name, value in {"card": True, **changes}.items():
            cfg[name] = str(value) if isinstance(value, Path) else value
        return cfg

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub on this machine, also in processes that are started."""
    with hub_server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield running


@pytest.fixture(scope="module")
def evaluated_run(exported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the exported run, with the results of eval.py and a model directory."""
    from warm_python import warm_imago

    run = Path(shutil.copytree(exported_run, tmp_path_factory.mktemp("private") / "train" / "flowers"))
    before = (run / "export" / "model.onnx").stat().st_mtime_ns
    for command in (("src/eval.py",), ("src/report.py", "card=true", "license=mit", "overwrite=true")):
        done = warm_imago().run(*command, f"run={run}", f"paths.log_dir={run.parents[1]}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "export" / "model.onnx").stat().st_mtime_ns == before  # it is of the same checkpoint
    return run


def front_matter(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding="utf-8").split("\n---\n")[0].removeprefix("---\n"))


def code_of(card: str, program: str) -> str:
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if f"import {program}\n" in text]
    assert len(code.splitlines()) == 3
    return code


def card_of(run: Path, directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    _write_card(read_record(run), directory, "flowers", None)
    return (directory / "README.md").read_text()


@pytest.mark.slow
def test_the_hub_reads_the_result_and_the_card_has_the_numbers_of_the_evaluation(evaluated_run: Path):
    hub = pytest.importorskip("huggingface_hub")
    directory, test = evaluated_run / "model", summary(evaluated_run)["test"]
    names = {"README.md", "model.onnx", "model.safetensors", "metadata.json", "confusion.png", "reliability.png"}
    assert {file.name for file in directory.iterdir()} == names
    data = hub.ModelCard.load(directory / "README.md").data
    (result,) = data.eval_results
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "imago", "image-classification")
    assert (result.task_type, result.dataset_type, result.dataset_split) == ("image-classification", "Shapes", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", test["acc"])
    card, found = (
        (directory / "README.md").read_text(),
        json.loads((evaluated_run / "eval/test/metrics.json").read_text()),
    )
    for name in ("acc", "f1", "ece"):
        low, high = found["interval_95" if name == "acc" else f"{name}_interval_95"]
        assert f"| test: {name} | {found[name]:.4f} (95 %: {low:.4f} to {high:.4f}) |" in card
    assert f"coverage | {found['prediction_sets']['90']['coverage']:.4f} (95 %:" in card
    assert "python src/eval.py run=RUN corrupt=all" in card
    assert "python src/eval.py run=RUN ood=DATA" in card
    assert "License: mit." in card


@pytest.mark.slow
def test_the_three_lines_of_the_card_give_the_probabilities_of_the_checkpoint(
    evaluated_run: Path, monkeypatch: pytest.MonkeyPatch
):
    from imago import load_model

    model = load_model(evaluated_run)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, *[model.preprocess.size] * 2), dtype=np.uint8)
    card, names = (evaluated_run / "model" / "README.md").read_text(), {"images": pixels}
    monkeypatch.chdir(evaluated_run / "model")
    exec(code_of(card, "onnxruntime"), names)
    np.testing.assert_allclose(names["probabilities"], model.probabilities(pixels).numpy(), atol=1e-5)
    assert f"uint8 (N, 3, {model.preprocess.size}, {model.preprocess.size})" in card


@pytest.mark.slow
def test_no_path_host_or_user_of_this_machine_is_published(evaluated_run: Path):
    for name in ("README.md", "metadata.json"):
        text = (evaluated_run / "model" / name).read_text()
        for private in (str(evaluated_run.parents[1]), "/home", "/tmp", platform.node(), str(Path.cwd())):
            assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text), private


@pytest.mark.slow
def test_exports_of_the_same_checkpoint_are_used_again_without_torch_and_others_are_not_replaced(
    evaluated_run: Path, tmp_path: Path, without_torch: Callable, settings: Callable
):
    run = Path(shutil.copytree(evaluated_run, tmp_path / "again"))
    done = without_torch("src/report.py", f"run={run}", "card=true", "overwrite=true")
    assert done.returncode == 0, done.stderr
    report = run / "export" / "export_report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"checkpoint_sha256": "of another"}))
    with pytest.raises(ConfigError, match=r"model.onnx exists; overwrite=true replaces it\.$"):
        write_model(settings(run=run, output=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_timm_loads_a_network_of_timm_with_the_lines_of_the_card(
    export: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("timm")
    net = {"_target_": "imago.model.timm_net.TimmNet", "name": "lcnet_050"}
    preprocess = Preprocess(96, 112, "center", (0.3, 0.4, 0.5), (0.2, 0.25, 0.3))
    model = Classifier(build_network(net, 2, 96), ["ant", "bee"], preprocess).eval().requires_grad_(False)
    model.network_settings = net
    directory, _ = export("safetensors", classifier=model, verify=lambda predict, report: {})
    card, names = card_of(make_run(tmp_path / "run"), directory), {}
    monkeypatch.chdir(directory)
    exec(code_of(card, "timm"), names)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 96, 96), dtype=np.uint8)
    logits = names["network"].eval()(model.normalize(torch.from_numpy(pixels))).detach()
    np.testing.assert_allclose(logits, model(pixels), atol=1e-4)
    assert names["transform"].transforms[-1].mean.tolist() == pytest.approx(preprocess.mean)
    assert front_matter(directory / "README.md")["library_name"] == "timm"


def test_class_names_and_paths_from_elsewhere_are_text_only(tmp_path: Path):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    run = make_run(tmp_path / "run", config={"data": {"_target_": "x.ListDataModule", "root": "/home/ann/<b>|x"}})
    make_evaluation(run, [0, 1, 2, 2], [1, 1, 2, 0], class_names=NASTY)
    tokens = markdown.parse(card_of(run, tmp_path / "model").split("\n---\n", 1)[1])
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in (*tokens, *inline)}.isdisjoint(
        {"html_inline", "html_block", "link_open", "strong_open", "em_open", "hr"}
    )
    assert [token.attrs["src"] for token in inline if token.type == "image"] == []
    cells = [token.content for token in tokens if token.type == "inline"]
    shown = {"".join(child.content for child in token.children) for token in tokens if token.type == "inline"}
    assert any("alert(1)" in cell for cell in cells)
    assert r"mistake: a|b\n---\n# c as <script>alert(1)</script>" in shown
    titles = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]
    assert titles == [
        "flowers",
        "Intended use",
        "Classes",
        "Data and training",
        "Results",
        "Calibration and limits",
        "How to load it",
    ]
    (result,) = front_matter(tmp_path / "model" / "README.md")["model-index"][0]["results"]
    assert result["dataset"] == {"type": "-b-x", "name": "<b>|x", "split": "test"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/flowers", "flowers"),
        ("data.root=/home/ann/my flowers/", "data.root=my flowers"),
        ('data.root="/srv/ann/data"', 'data.root="data"'),
        ("model.weights=../ann/w.pth", "model.weights=w.pth"),
        ("x=[~/a/b.csv,~ann/c]", "x=[b.csv,c]"),
        ("{root: /srv/ann/data, size: 3}", "{root: data, size: 3}"),
        ("logs/train/a", "logs/train/a"),
        ("10 / 20, 1,338 images/s", "10 / 20, 1,338 images/s"),
    ],
)
def test_only_the_last_name_of_a_path_is_published(text: str, expected: str):
    assert _public(text) == expected


def test_the_command_has_the_settings_of_the_training_but_none_of_a_machine_or_an_account(tmp_path: Path):
    run = make_run(tmp_path / "run")
    typed = ["data.root=/home/ann/flowers", "logger.wandb.entity=ann", "paths.log_dir=/home/ann", "optimizer.lr=0.1"]
    (run / "provenance.json").write_text(
        json.dumps({"overrides": typed, "host": "anns-laptop", "git": {"commit": "abc"}})
    )
    card = card_of(run, tmp_path / "model")
    assert "| command | python src/train.py data.root=flowers optimizer.lr=0.1 |" in card
    assert "| commit | abc |" in card
    assert "ann" not in card.replace("channels", "")


def test_robustness_and_unknown_images_are_shown_with_intervals(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").write_text("a checkpoint")
    digest = sha256_of(run / "checkpoints" / "best.ckpt")
    folder = make_evaluation(run, [0, 1], [0, 1], model_sha256=digest, unknown_images=UNKNOWN, num_images=2)
    (folder / "robustness.json").write_text(json.dumps(ROBUST))
    other = make_evaluation(run, [0, 1], [0, 1], split="val", model_sha256="another", num_images=77)
    shutil.copy(Path(__file__).parents[2] / "docs" / "images" / "serving_page.png", folder / "robustness.png")
    card = card_of(run, tmp_path / "model")
    assert "| robustness: test: mean corrupted acc | 0.5000 (95 %: 0.2500 to 0.6250) |" in card
    assert "gaussian noise: acc | 0.7000 (95 %: 0.6500 to 0.7500); 0.6000 (95 %: 0.6500 to 0.7500);" in card
    assert "gaussian noise: calibration error | 0.1000 / 0.2000 / 0.3000 / 0.4000 / 0.5000 |" in card
    assert "| unknown images: test: num unknown | 2,000 |" in card
    assert "| unknown images: test: auroc | 0.8750 (95 %: 0.8600 to 0.8900) |" in card
    assert "not measured; python src/eval.py run=RUN corrupt=all" not in card
    assert "![robustness.png](robustness.png)" in card
    assert other.is_dir()
    assert "77" not in card


def test_the_hub_gets_the_accuracy_of_one_view_and_none_if_only_several_were_tested(tmp_path: Path):
    test = {"acc": 0.9, "interval_95": [0.8, 0.95], "num_images": 8, "tta": "flip"}
    run = make_run(tmp_path / "run", test=test)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").write_text("a checkpoint")
    card = card_of(run, tmp_path / "model")
    assert "model-index" not in front_matter(tmp_path / "model" / "README.md")
    assert "0.9" not in card.replace("with tta=flip", "").partition("---\n\n")[0]
    assert "n = 8, with tta=flip" in card
    digest = sha256_of(run / "checkpoints" / "best.ckpt")
    one = {"acc": 0.75, "interval_95": [0.5, 0.875], "num_images": 8, "tta": "none"}
    make_evaluation(run, [0, 1], [0, 1], model_sha256=digest, **one)
    card_of(run, tmp_path / "model")
    (result,) = front_matter(tmp_path / "model" / "README.md")["model-index"][0]["results"]
    (metric,) = result["metrics"]
    assert (metric["value"], metric["name"]) == (0.75, "accuracy (95 %: 0.5000 to 0.8750, n = 8)")


def test_robustness_of_another_checkpoint_and_its_figure_are_left_out(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").write_text("a checkpoint")
    folder = make_evaluation(run, [0, 1], [0, 1], model_sha256=sha256_of(run / "checkpoints" / "best.ckpt"))
    (folder / "robustness.json").write_text(json.dumps(ROBUST | {"model_sha256": "another"}))
    for name in ("robustness.png", "confusion.png"):
        (folder / name).write_bytes(b"a figure")
    card = card_of(run, tmp_path / "model")
    assert "| robustness | not measured; python src/eval.py run=RUN corrupt=all |" in card
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"README.md", "confusion.png"}


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_the_card_says_whether_the_run_has_finished(tmp_path: Path, status: str):
    assert f"| status of the run | {status} |" in card_of(make_run(tmp_path / "run", status=status), tmp_path / "model")


@pytest.mark.parametrize("key", ["prediction_sets", "unknown_detector", "calibration_temperature"])
def test_an_export_that_is_older_than_the_calibration_is_written_again(
    tmp_path: Path, settings: Callable, monkeypatch: pytest.MonkeyPatch, key: str
):
    run, calls = make_run(tmp_path / "run"), []
    monkeypatch.setattr(model_card, "export", calls.append)
    for name in ("export/model.onnx", "checkpoints/best.ckpt"):
        (run / name).parent.mkdir()
        (run / name).write_text("weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    file = run / "checkpoints" / "calibration.json"
    entry = {"checkpoint_sha256": digest, "calibration_temperature": 1.5, "prediction_sets": {}, "unknown_detector": {}}
    file.write_text(json.dumps({"best.ckpt": entry}))
    report = {"sha256": digest, "checkpoint_sha256": digest}
    report["calibration_sha256"] = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    (run / "export" / "export_report.json").write_text(json.dumps(report))
    assert _exported(settings(run=run), run, "onnx") == run / "export" / "model.onnx"
    assert calls == []
    file.write_text(json.dumps({"best.ckpt": entry | {key: 1.25 if entry[key] else {"a": 1}}}))
    _exported(settings(run=run), run, "onnx")
    assert [cfg.run for cfg in calls] == [str(run)]


@pytest.mark.parametrize("left_out", [["prediction_sets", "unknown_detector"], ["unknown_detector"]])
def test_a_run_of_an_older_version_gets_a_card_that_says_what_is_not_fitted(tmp_path: Path, left_out: list[str]):
    checkpoint = make_run(tmp_path / "run") / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_text("a checkpoint")
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(80, 3)).astype(np.float32), random.integers(0, 3, 80)
    calibrate(checkpoint, LabeledOutputs(("a", "b", "c"), labels, logits, np.full(80, 0.5)))
    file = checkpoint.with_name("calibration.json")
    entry = json.loads(file.read_text())["best.ckpt"]
    file.write_text(json.dumps({"best.ckpt": {key: entry[key] for key in entry if key not in left_out}}))
    (line,) = [line for line in card_of(tmp_path / "run", tmp_path / "model").splitlines() if "| calibration |" in line]
    assert "unknown images are not marked" in line
    assert ("no prediction sets were fitted" in line) == ("prediction_sets" in left_out)


def test_numbers_without_an_interval_and_of_classes_are_left_out():
    values = {
        "acc": 0.5,
        "loss": 1.0,
        "interval_95": [0.25, 0.75],
        "per_class": {"a": {"num_images": 1}},
        "num_images": 1000,
    }
    assert list(_numbers(values)) == [("acc", "0.5000 (95 %: 0.2500 to 0.7500)"), ("num images", "1,000")]


def test_a_run_of_another_task_gets_a_card_without_files(settings: Callable, tmp_path: Path, capsys):
    run = make_run(tmp_path / "flowers")
    (run / "provenance.json").write_text(json.dumps({"overrides": [], "commands": []}))
    write_model(settings(run=run))
    assert [file.name for file in (run / "model").iterdir()] == ["README.md"]
    assert "License: not stated." in (run / "model" / "README.md").read_text()
    assert "license" not in front_matter(run / "model" / "README.md")
    assert "model directory" in capsys.readouterr().out


def test_a_network_without_a_format_gets_a_card_with_a_note_but_an_error_of_the_user_ends_it(
    settings: Callable, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path / "flowers")
    error: UserError = UserError("Net cannot be exported to ONNX: no way; change its forward.")

    def fail(cfg: DictConfig) -> None:
        raise error

    monkeypatch.setattr(model_card, "export", fail)
    write_model(settings(run=run))
    assert "note: no model.onnx: Net cannot be exported" in capsys.readouterr().out
    error = DataError("the data is missing")
    with pytest.raises(DataError, match="the data is missing"):
        write_model(settings(run=run, overwrite=True))
    assert [file.name for file in (run / "model").iterdir()] == ["README.md"]
    assert {file.name for file in run.iterdir() if "part" in file.name} == set()


def test_a_directory_with_other_files_is_never_replaced(settings: Callable, tmp_path: Path):
    run = make_run(tmp_path / "flowers")
    (run / "provenance.json").write_text('{"commands": []}')
    for name, changes in (("a", {}), ("b", {"overwrite": True})):
        (tmp_path / name).mkdir()
        for file in ("README.md", "thesis.tex"):
            (tmp_path / name / file).write_text("mine")
        with pytest.raises(ConfigError, match=f"{name} exists; overwrite=true replaces it, unless it has other files"):
            write_model(settings(run=run, output=tmp_path / name, **changes))
        assert (tmp_path / name / "README.md").read_text() == "mine"


def test_damaged_results_are_one_line(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text('{"status": "finished", "val": 3, "test": null}')
    with pytest.raises(DataError, match=r"run has damaged results .*evaluate it again with eval.py run=RUN\.$"):
        card_of(run, tmp_path / "model")


def test_a_bug_in_our_own_code_is_not_called_a_damaged_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_card, "_front_matter", {}.__getitem__)
    with pytest.raises(TypeError):
        card_of(make_run(tmp_path / "run"), tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": None}, "run=None is not one run"),
        ({"push": "flowers"}, "push=flowers is not OWNER/NAME"),
        ({"push": "me/flowers", "card": False}, "model is no model directory with README.md; card=true writes"),
        ({"split": "val"}, "split=val is a setting of a page"),
        ({"csv": "x.csv"}, "csv=x.csv is a setting of the table of runs"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes: dict, words: str, settings: Callable, tmp_path: Path):
    with pytest.raises(ConfigError, match=words):
        write_model(settings(**{"run": make_run(tmp_path / "run"), **changes}))
    assert not (tmp_path / "run" / "model").exists()


def test_a_missing_package_is_one_line(settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_card, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package huggingface_hub, an extra: pip install -e '.\[hub\]'"):
        write_model(settings(run=make_run(tmp_path / "run"), push="me/flowers"))


@pytest.mark.slow
def test_push_uploads_exactly_the_directory_to_a_private_repository(hub: Hub, evaluated_run: Path, command: Callable):
    pytest.importorskip("huggingface_hub")
    done = command("src/report.py", f"run={evaluated_run}", "push=me/flowers")
    assert done.returncode == 0, done.stdout + done.stderr
    files = {file.name: file.read_bytes() for file in (evaluated_run / "model").iterdir()}
    assert hub.files == files
    assert [entry["visibility"] for entry in hub.created] == ["private"]
    assert all(f"{len(content):,}" in done.stdout for content in files.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "variables", "words"),
    [
        ({"is_public": True}, {}, "push=me/flowers exists and is public; type private=false"),
        ({"refuses": True}, {}, "403"),
        ({"fault": '"license" must be one of [mit]'}, {}, 'README.md. - "license" must be one of [mit]'),
        ({}, {"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
        ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
        ({}, {"HF_TOKEN": ""}, "needs a token of the Hub: run hf auth login, or set HF_TOKEN."),
    ],
)
def test_an_upload_that_fails_is_one_line(
    state: dict,
    variables: dict,
    words: str,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable,
):
    pytest.importorskip("huggingface_hub")
    for name, value in state.items():
        setattr(hub, name, value)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = make_run(tmp_path / "run")
    card_of(run, run / "model")
    done = command("src/report.py", f"run={run}", "push=me/flowers")
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("error: push=me/flowers")
    assert len(done.stderr.splitlines()) == 1
    assert hub.files == {}
