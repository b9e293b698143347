"""Loss, accuracy and further metrics of an epoch: each image counts once, in any batch and on any rank."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from sklearn import metrics as sk
from torch import Tensor, nn

from imago.errors import ConfigError
from imago.statistics.metrics import LabeledOutputs, macro_scores, per_class
from imago.task.metrics import EvaluationMetrics, LossAndAccuracy, build_metric, compute_with_intervals, count_correct

ONE_DEVICE = SingleDeviceStrategy(device=torch.device("cpu"))


def logits_for(*labels: int) -> Tensor:
    """Return logits of three classes that are largest at `labels`."""
    return 5 * nn.functional.one_hot(torch.tensor(labels), 3).float() - 1


def test_predictions_are_counted_by_the_largest_logit_and_the_largest_soft_label():
    assert count_correct(logits_for(0, 1, 2, 2), torch.tensor([0, 1, 1, 2])).item() == 3
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    assert count_correct(logits_for(0, 1), soft).item() == 1


def test_batches_of_different_size_count_by_their_images_and_an_empty_split_has_no_result():
    metrics = LossAndAccuracy()
    assert metrics.compute(ONE_DEVICE) == {}
    metrics.update(torch.tensor(1.0, requires_grad=True) * 1, 3, logits_for(0, 0, 0), torch.tensor([0, 0, 1]))
    metrics.update(torch.tensor(5.0), 1, logits_for(2), torch.tensor([2]))
    metrics.update(torch.tensor(float("nan")), 0, logits_for(2)[:0], torch.tensor([], dtype=torch.int64))
    assert metrics.compute(ONE_DEVICE) == {"loss": pytest.approx(2.0), "acc": 0.75, "num_images": 4}
    assert not metrics.loss_sum.requires_grad  # the graph of a training loss is not kept


def test_without_logits_the_loss_counts_and_the_accuracy_is_that_of_the_other_batches():
    metrics = LossAndAccuracy()
    metrics.update(torch.tensor(2.0), 3)
    assert metrics.compute(ONE_DEVICE) == {"loss": 2.0, "num_images": 3}
    metrics.update(torch.tensor(6.0), 1, logits_for(1), torch.tensor([1]))
    assert metrics.compute(ONE_DEVICE) == {"loss": 3.0, "acc": 1.0, "num_images": 4}


def test_the_sums_of_all_ranks_are_added():
    others = torch.tensor([9.0, 2.0, 1.0, 2.0])  # loss sum, images, correct and counted ones of another rank
    ranks = SimpleNamespace(
        root_device=torch.device("cpu"),
        reduce=lambda sums, reduce_op: {"sum": sums + others}[reduce_op],
    )
    metrics = LossAndAccuracy()
    metrics.update(torch.tensor(1.0), 1, logits_for(0), torch.tensor([0]))
    assert metrics.compute(ranks) == {"loss": pytest.approx(10 / 3), "acc": pytest.approx(2 / 3), "num_images": 3}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_summed_in_full_precision(dtype: torch.dtype):
    """A sum in bfloat16 stops to increase after 256 equal values; one in float16 overflows above 65,504."""
    losses = torch.linspace(1.0, 3.0, 350, dtype=dtype)
    metrics = LossAndAccuracy()
    for loss in losses:
        metrics.update(loss, 128)
    expected = sum(losses.tolist()) / len(losses)  # in Python's float64
    assert metrics.compute(ONE_DEVICE)["loss"] == pytest.approx(expected, rel=1e-5)


def test_small_losses_still_count_after_many_batches():
    metrics = LossAndAccuracy()
    logits, labels = logits_for(0).expand(100, 3), torch.zeros(100, dtype=torch.int64)
    for _ in range(500):
        metrics.update(torch.tensor(0.125), 100, logits, labels)
    assert metrics.compute(ONE_DEVICE) == {"loss": pytest.approx(0.125, rel=1e-6), "acc": 1, "num_images": 50_000}


# The config group metrics

OF = "torchmetrics.classification."
SETTINGS: dict[str, Any] = {
    "f1": {"_target_": f"{OF}MulticlassF1Score", "average": "macro"},
    "auroc": {"_target_": f"{OF}MulticlassAUROC"},
    "top2": {"_target_": f"{OF}MulticlassAccuracy", "top_k": 2, "average": "micro"},
    "mcc": {"_target_": f"{OF}MatthewsCorrCoef", "task": "multiclass"},
    "none": None,
}


@pytest.fixture(scope="module")
def outputs() -> tuple[np.ndarray, np.ndarray]:
    """Logits of 5 classes and labels of 200 images."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 200)
    logits = generator.normal(size=(200, 5)) + 1.5 * np.eye(5)[labels]
    return logits.astype(np.float32), labels


def by_scikit_learn(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    probabilities, predicted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), logits.argmax(axis=1)
    areas = [sk.roc_auc_score(labels == index, probabilities[:, index]) for index in range(5)]
    return {
        "f1": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "auroc": float(np.mean(areas)),
        "top2": sk.top_k_accuracy_score(labels, logits, k=2, labels=range(5)),
        "mcc": sk.matthews_corrcoef(labels, predicted),
    }


def test_each_metric_is_that_of_scikit_learn_over_all_batches(outputs):
    logits, labels = map(torch.from_numpy, outputs)
    metrics = EvaluationMetrics(SETTINGS, num_classes=5)
    for epoch_logits in (-logits, logits):  # the first epoch leaves nothing
        metrics.reset()
        for batch, targets in zip(
            epoch_logits.split((64, 64, 64, 8, 0)), labels.split((64, 64, 64, 8, 0)), strict=True
        ):
            metrics.update(nn.functional.cross_entropy(batch, targets), batch.bfloat16().float(), targets, len(batch))
    found = metrics.compute(ONE_DEVICE)
    assert {*found} == {"loss", "acc", "num_images", "f1", "auroc", "top2", "mcc"}
    rounded = logits.bfloat16().float().numpy()
    assert {key: found[key] for key in by_scikit_learn(rounded, outputs[1])} == pytest.approx(
        by_scikit_learn(rounded, outputs[1]), abs=1e-5
    )
    metrics.reset()
    assert metrics.compute(ONE_DEVICE) == {}


@pytest.mark.slow
def test_the_interval_of_a_metric_is_its_spread_over_repeated_draws_of_the_images(outputs):
    logits, labels = outputs
    found = compute_with_intervals(SETTINGS, logits, labels)
    expected = by_scikit_learn(logits, labels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    generator = np.random.default_rng(9)
    draws = [generator.integers(0, 200, 200) for _ in range(500)]
    values = [sk.matthews_corrcoef(labels[draw], logits[draw].argmax(axis=1)) for draw in draws]
    shift = found["mcc"] - np.mean(values)
    assert found["mcc_interval_95"] == pytest.approx((np.quantile(values, (0.025, 0.975)) + shift).tolist(), abs=0.03)
    assert compute_with_intervals(SETTINGS, logits, labels) == found
    assert "none" not in found


@pytest.mark.slow
def test_without_mistakes_a_metric_has_an_interval_too():
    labels = np.arange(20) % 2
    logits = 4 * np.eye(2, dtype=np.float32)[labels]
    names = ("MulticlassCohenKappa", "MulticlassAUROC", "MulticlassHingeLoss", "MulticlassF1Score", "MulticlassRecall")
    found = compute_with_intervals({name: {"_target_": OF + name} for name in names}, logits, labels)
    for name in names:
        low, high = found[f"{name}_interval_95"]
        assert low <= found[name] <= high
        assert high - low > 0.05, name
    assert found["MulticlassRecall_interval_95"] == pytest.approx([0.839, 1], abs=0.06)  # Wilson's, of 20 of 20


@pytest.mark.slow
def test_the_bounds_of_plots_do_not_cut_the_interval_of_a_metric_that_exceeds_them():
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 4, 300), generator.normal(size=(300, 4)).astype(np.float32)
    logits[np.arange(300), labels] -= 0.3  # below chance
    names = {"kappa": "MulticlassCohenKappa", "mcc": "MulticlassMatthewsCorrCoef", "hinge": "MulticlassHingeLoss"}
    found = compute_with_intervals({key: {"_target_": OF + name} for key, name in names.items()}, logits, labels)
    rows, wrong = np.arange(300), np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    of_label = wrong[rows, labels].copy()
    wrong[rows, labels] = -np.inf
    hinge, predicted = np.maximum(1 - of_label + wrong.max(axis=1), 0), logits.argmax(axis=1)
    expected = {
        "kappa": lambda draw: sk.cohen_kappa_score(labels[draw], predicted[draw]),
        "mcc": lambda draw: sk.matthews_corrcoef(labels[draw], predicted[draw]),
        "hinge": lambda draw: hinge[draw].mean(),
    }
    draws = [generator.integers(0, 300, 300) for _ in range(300)]
    for name, score in expected.items():
        assert found[name] == pytest.approx(score(rows), abs=1e-5)
        assert (found[name] > 1) if name == "hinge" else (found[name] < 0)
        ends = np.quantile([score(draw) for draw in draws], (0.025, 0.975))
        assert found[f"{name}_interval_95"] == pytest.approx(ends.tolist(), abs=0.03)
        assert np.mean(found[f"{name}_interval_95"]) == pytest.approx(found[name], abs=0.01)


@pytest.mark.parametrize("num_images", [30, 200])
def test_macro_f1_is_one_number_in_eval_training_report_and_scikit_learn(num_images: int):
    generator = np.random.default_rng(3)
    labels, logits = generator.integers(0, 20, num_images), generator.normal(size=(num_images, 40)).astype(np.float32)
    logits[np.arange(num_images), labels] += 2  # 20 of 40 classes have images; others are predicted
    result = LabeledOutputs(tuple(map(str, range(40))), labels, logits, logits.max(axis=1))
    settings = {"own": {"_target_": f"{OF}MulticlassF1Score", "average": "macro"}}
    in_training = EvaluationMetrics(settings, 40)
    for rows in np.array_split(np.arange(num_images), 7):
        batch = torch.from_numpy(logits[rows]), torch.from_numpy(labels[rows])
        in_training.update(torch.tensor(1.0), *batch, len(rows))
    found, own = result.metrics(), compute_with_intervals(settings, logits, labels)
    expected = pytest.approx(sk.f1_score(labels, logits.argmax(axis=1), average="macro", zero_division=0), abs=1e-6)
    report = macro_scores(per_class(result.confusion))["f1"]  # of predictions.csv
    assert [found["f1"], own["own"], in_training.compute(ONE_DEVICE)["own"], report] == [expected] * 4
    for low, high in (found["f1_interval_95"], own["own_interval_95"]):
        assert abs((low + high) / 2 - found["f1"]) < 0.15 * (high - low)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("loss", SETTINGS["f1"], "metrics.loss: the name is taken"),
        ("num_images", SETTINGS["f1"], "metrics.num_images: the name is taken"),
        (
            "f1",
            SETTINGS["f1"] | {"average": "none"},
            "metrics.f1 must be a single number, and its value is (5,); set its",
        ),
        ("matrix", {"_target_": f"{OF}MulticlassConfusionMatrix"}, "must be a single number, and its value is (5, 5)"),
        ("roc", {"_target_": f"{OF}MulticlassROC"}, "must be a single number, and its value is tuple"),
        ("f1", {"_target_": f"{OF}BinaryF1Score"}, "cannot be computed from probabilities (N, 5) and labels (N,): "),
        ("mae", {"_target_": "torchmetrics.MeanAbsoluteError"}, "cannot be computed from probabilities (N, 5)"),
        ("f1", SETTINGS["f1"] | {"average": "some"}, "metrics.f1: "),
        ("f1", {"_target_": f"{OF}MulticlassF1Scor"}, "did you mean torchmetrics.classification.MulticlassF1Score?"),
        ("f1", SETTINGS["f1"] | {"beta": 2}, "metrics.f1: "),
        ("net", {"_target_": "torch.nn.Linear"}, "metrics.net: _target_=torch.nn.Linear is not a Metric; name a class"),
        ("f1", {"average": "macro"}, "metrics.f1: "),
    ],
)
def test_a_metric_that_cannot_be_computed_is_one_line(name: str, settings: dict[str, Any], text: str):
    with pytest.raises(ConfigError) as caught:
        build_metric(name, settings, 5)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_metrics_get_small_batches_together_also_if_their_memory_is_used_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("imago.task.metrics._MAX_WAITING", 60)
    evaluation = EvaluationMetrics({"f1": {"_target_": f"{OF}MulticlassF1Score", "average": "macro"}}, 3)
    sizes: list[int] = []
    update = evaluation.further["f1"].update
    evaluation.further["f1"].update = lambda values, labels: (sizes.append(len(values)), update(values, labels))
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 3, generator=generator), torch.randint(3, (50,), generator=generator)
    output = torch.empty(8, 3)
    for start in range(0, 50, 8):
        batch = output[: len(labels[start : start + 8])].copy_(logits[start : start + 8])
        evaluation.update(torch.tensor(1.0), batch, labels[start : start + 8], len(batch))
    result = evaluation.compute(ONE_DEVICE)
    assert sizes == [24, 24, 2]  # 20 images have 60 logits
    assert result["f1"] == pytest.approx(sk.f1_score(labels, logits.argmax(1), average="macro"), abs=1e-6)
    evaluation.update(torch.tensor(1.0), logits[:1], labels[:1], 1)
    evaluation.reset()
    evaluation.update(torch.tensor(1.0), logits_for(1, 2), torch.tensor([1, 2]), 2)
    assert evaluation.compute(ONE_DEVICE)["acc"] == 1.0
    assert sizes[-1] == 2
