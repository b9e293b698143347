"""Intervals: published values, and coverage of the true value in simulations."""

import numpy as np
import pytest
from scipy import stats

from imago.statistics.calibration import reliability
from imago.statistics.intervals import ece_interval, far_above_note, macro_intervals, mean_interval, wilson_interval
from imago.statistics.metrics import macro_scores, per_class, softmax


@pytest.mark.parametrize(
    ("num_correct", "num_images", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_intervals_are_the_published_ones(num_correct: int, num_images: int, low: float, high: float):
    assert wilson_interval(num_correct, num_images) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("num_images", [1, 2, 7, 50, 199])
def test_the_ends_of_wilson_intervals_are_exactly_0_and_1(num_images: int):
    assert wilson_interval(0, num_images)[0] == 0
    assert wilson_interval(num_images, num_images)[1] == 1


@pytest.mark.parametrize("num_seeds", [2, 3, 20])
def test_the_interval_of_a_mean_over_seeds_is_students(num_seeds: int):
    values = np.random.default_rng(num_seeds).normal(0.9, 0.01, num_seeds)
    expected = stats.t.interval(0.95, num_seeds - 1, values.mean(), stats.sem(values))
    assert mean_interval(values.tolist()) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_single_seed_has_no_interval_and_equal_seeds_one_of_width_zero():
    assert mean_interval([0.9]) is None
    assert mean_interval([]) is None
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


@pytest.mark.parametrize(
    ("val", "num_val", "test", "num_test", "is_far"),
    [
        (0.99, 5000, 0.92, 10_000, True),
        (0.94, 5000, 0.93, 10_000, False),  # z = 2.3
        (0.96, 50_000, 0.945, 50_000, False),  # far by chance, but less than two points
        (1.0, 20, 0.8, 20, False),
        (1.0, 100, 0.8, 100, True),
        (0.8, 5000, 0.95, 5000, False),
        (1.0, 10, 1.0, 10, False),
    ],
)
def test_a_val_accuracy_far_above_that_of_test_is_noted(
    val: float, num_val: int, test: float, num_test: int, is_far: bool
):
    note = far_above_note({"acc": val, "num_images": num_val}, {"acc": test, "num_images": num_test})
    assert bool(note) == is_far
    table = [[round(val * num_val), num_val], [round(test * num_test), num_test]]
    cells = [[correct, number - correct] for correct, number in table]
    if min(map(sum, zip(*cells, strict=True))):  # not all right
        z = np.sqrt(stats.chi2_contingency(cells, correction=False).statistic)
        assert is_far == (z > 3.3 and val - test > 0.02)
    assert far_above_note({"acc": val}, {"acc": test, "num_images": num_test}) == ""


class Simulated:
    """A network whose predictions for new images can be drawn; it outputs softmax(logits / temperature)."""

    def __init__(self, num_classes: int, temperature: float) -> None:
        self.random = np.random.default_rng(0)
        self.frequencies = np.linspace(1, 3, num_classes)
        self.temperature = temperature

    def draw(self, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels, predicted classes and their probabilities, each (N,)."""
        num_classes = len(self.frequencies)
        logits = 1.5 * self.random.normal(size=(num_images, num_classes)) + np.log(self.frequencies)
        below = softmax(logits).cumsum(axis=1) < self.random.random((num_images, 1))
        probabilities = softmax(logits / self.temperature)
        labels = below.sum(axis=1).clip(0, num_classes - 1)
        return labels, probabilities.argmax(axis=1), probabilities.max(axis=1)


@pytest.mark.slow
def test_about_95_of_100_macro_intervals_contain_the_true_score():
    network, num_trials = Simulated(5, 1.0), 200
    labels, predicted, _ = network.draw(400_000)
    truth = macro_scores(per_class(confusion_matrix(labels, predicted, 5)))
    hits = dict.fromkeys(truth, 0)
    for trial in range(num_trials):
        labels, predicted, _ = network.draw(150)
        found = macro_intervals(confusion_matrix(labels, predicted, 5), seed=trial, num_draws=200)
        for name, (low, high) in found.items():
            hits[name] += low <= truth[name] <= high
    shares = {name: count / num_trials for name, count in hits.items()}
    assert min(shares.values()) >= 0.88, shares  # percentiles of few images are a little narrow
    assert max(shares.values()) <= 0.99, shares


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_at_least_about_95_of_100_ece_intervals_contain_the_true_error(temperature: float):
    network, num_trials = Simulated(5, temperature), 150
    labels, predicted, probability = network.draw(400_000)
    truth = reliability(probability, labels == predicted).ece
    hits = 0
    for trial in range(num_trials):
        labels, predicted, probability = network.draw(400)
        low, high = ece_interval(probability, labels == predicted, seed=trial, num_draws=200)
        hits += low <= truth <= high
    assert hits / num_trials >= 0.92


@pytest.mark.parametrize(("num_classes", "num_images"), [(4, 300), (60, 120)])
def test_macro_intervals_are_those_of_drawing_images_and_the_score_is_in_their_middle(
    num_classes: int, num_images: int
):
    labels, predicted, _ = Simulated(num_classes, 1.0).draw(num_images)
    random, scores = np.random.default_rng(5), []
    for _ in range(1500):
        rows = random.integers(0, num_images, num_images)
        scores.append(macro_scores(per_class(confusion_matrix(labels[rows], predicted[rows], num_classes))))
    measured = macro_scores(per_class(confusion_matrix(labels, predicted, num_classes)))
    for name, (low, high) in macro_intervals(confusion_matrix(labels, predicted, num_classes)).items():
        drawn = np.array([score[name] for score in scores])
        expected = np.quantile(drawn, [0.025, 0.975]) + measured[name] - drawn.mean()
        assert (low, high) == pytest.approx(expected, abs=0.012), name
        assert abs((low + high) / 2 - measured[name]) < 0.1 * (high - low), name


@pytest.mark.parametrize("confusion", [np.diag([10, 10]), np.diag([6, 7, 7]), np.diag([20, 0, 0])])
def test_without_mistakes_the_intervals_are_about_that_of_the_accuracy(confusion: np.ndarray):
    wilson = wilson_interval(20, 20)[0]
    for low, high in macro_intervals(confusion).values():
        assert high == 1
        assert abs(low - wilson) < 0.05 or np.count_nonzero(confusion) == 1  # a second class halves the score
        assert low < 0.97
    low, high = ece_interval(np.full(20, 0.982), np.ones(20, bool))
    assert low == 0
    assert 0.1 < high < 0.3


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_classes", "num_images", "accuracy", "before"),
    [(2, 50, 0.98, 0.59), (2, 153, 0.99, 0.78), (10, 200, 0.99, 0.84), (2, 100, 0.95, 0.95), (5, 150, 0.8, 0.94)],
)
def test_f1_intervals_contain_the_true_score_at_every_accuracy(
    num_classes: int, num_images: int, accuracy: float, before: float
):
    """`before` is the coverage without mistakes that the test does not show: they must not lower it elsewhere."""
    shares = np.full((num_classes, num_classes), (1 - accuracy) / (num_classes - 1) / num_classes)
    np.fill_diagonal(shares, accuracy / num_classes)
    drawn = np.random.default_rng(1).multinomial(num_images, shares.ravel(), 120).reshape(-1, num_classes, num_classes)
    found = [macro_intervals(confusion, num_draws=150)["f1"] for confusion in drawn]
    assert covered(found, accuracy) >= max(0.93, before - 0.03)  # F1 is the accuracy in this symmetric case
    half_widths = [(high - low) / 2 for low, high in found]
    assert min(half_widths) > 0
    if accuracy < 0.97:  # about as wide as the interval of the accuracy
        wilson = [np.diff(wilson_interval(int(np.trace(confusion)), num_images))[0] / 2 for confusion in drawn]
        assert 0.85 < np.mean(half_widths) / np.mean(wilson) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [1.0, 2.0])  # calibrated, and overconfident
@pytest.mark.parametrize(("num_images", "accuracy"), [(50, 0.98), (153, 0.99), (400, 0.95), (400, 0.8)])
def test_ece_intervals_contain_the_true_error_at_every_accuracy(num_images: int, accuracy: float, exponent: float):
    generator = np.random.default_rng(2)

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        share = generator.beta(4 * accuracy, 4 - 4 * accuracy, num).clip(0.1, 1 - 1e-9)
        return 1 / (1 + ((1 - share) / share) ** exponent), generator.random(num) < share

    truth = reliability(*draw(400_000)).ece
    found = [ece_interval(*draw(num_images), num_draws=150) for _ in range(120)]
    assert covered(found, truth) >= 0.93
    assert min(high - low for low, high in found) > 0


def test_the_ece_interval_contains_the_measured_error_and_depends_only_on_the_seed():
    labels, predicted, probability = Simulated(3, 0.6).draw(500)
    low, high = ece_interval(probability, labels == predicted)
    assert (
        (low, high)
        == ece_interval(probability, labels == predicted)
        != ece_interval(probability, labels == predicted, 1)
    )
    assert 0 <= low < reliability(probability, labels == predicted).ece < high <= 1


def test_a_class_that_is_never_predicted_counts_in_every_draw():
    found = macro_intervals(np.array([[10, 0], [10, 0]]))
    low, high = found["macro_recall"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert 0 < found["f1"][0] < 0.4 < found["f1"][1] < 0.5
