"""Load a trained network from a run directory, a checkpoint or an ONNX file; an ONNX file needs no torch."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from imago.errors import ConfigError, DataError
from imago.images import Preprocess
from imago.inference.calibration import read_temperature
from imago.statistics.calibration import UNCALIBRATED
from imago.statistics.metrics import softmax

if TYPE_CHECKING:
    import torch

    from imago.model.classifier import Classifier
    from imago.task.classification import ClassificationTask

log = logging.getLogger(__name__)

# N images, K classes
_PREFIX = "net."  # of the network's keys in a checkpoint of the task
_ACCELERATORS = ("auto", "cpu", "gpu")


class Predictor(Protocol):
    """A trained network from any kind of file.

    Attributes:
        class_names: K names; the index of a name is its label.
        preprocess: how images are prepared for the network.
        calibration_temperature: divisor of the logits before the softmax; 1 if none was fitted.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    calibration_temperature: float

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map uint8 images (N, 3, size, size) to float32 logits and calibrated probabilities, (N, K) each."""


class TorchPredictor:
    """A torch network that computes in fp32, whatever precision it was trained in.

    Args:
        model: as returned by `load_classifier` or `load_calibrated`.
        device: where it computes.
        tta: views of each image to average, see `imago.task.tta`.

    Attributes:
        model: on that device.
    """

    def __init__(self, model: "Classifier", device: "torch.device", tta: str = "none") -> None:
        import torch

        self.class_names = model.class_names
        self.preprocess = model.preprocess
        self.calibration_temperature = model.calibration_temperature
        torch.backends.cudnn.allow_tf32 = False  # its default rounds the fp32 of convolutions to 10 bits
        self._device = device
        self._tta = tta
        self.model = model.float().to(device).to(memory_format=torch.channels_last)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map uint8 images (N, 3, size, size) to float32 logits and calibrated probabilities, (N, K) each."""
        import torch

        from imago.task.tta import predict_with_tta

        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            logits = predict_with_tta(self.model, torch.from_numpy(images).to(self._device), self._tta).cpu().numpy()
        return logits, softmax(logits / self.calibration_temperature)


def load_predictor(
    path: Path,
    extra_targets: Sequence[str] = (),
    accelerator: str = "auto",
    tta: str = "none",
    is_calibrated: bool = True,
) -> Predictor:
    """Load a trained network that maps images to logits.

    Args:
        path: a run directory (its best checkpoint), a checkpoint file, or an ONNX file (loaded without torch).
        extra_targets: packages that the checkpoint's network may come from, as typed by the user.
        accelerator: auto, cpu or gpu; an ONNX file runs on the CPU.
        tta: views of each image to average, see `imago.task.tta`; for a checkpoint only.
        is_calibrated: whether to load a checkpoint's temperature, and to log a warning if there is none.

    Raises:
        DataError: if there is no intact checkpoint or ONNX file of this project.
        ConfigError: if the accelerator is missing, or the checkpoint names a target that is not allowed.
    """
    if is_onnx(path):
        from imago.artifact import OnnxClassifier

        exported = OnnxClassifier(path)
        if exported.calibration_temperature == UNCALIBRATED:
            log.warning("probabilities are not calibrated: %s was exported without a temperature", path)
        return exported
    model = load_calibrated(path, extra_targets, tta) if is_calibrated else load_classifier(path, extra_targets)
    return TorchPredictor(model, find_device(accelerator), tta)


def load_calibrated(path: Path, extra_targets: Sequence[str] = (), tta: str = "none") -> "Classifier":
    """Load a network with the temperature fitted for its checkpoint and these views; log a warning if there is none."""
    file = checkpoint_path(path)
    classifier = load_classifier(file, extra_targets)
    classifier.calibration_temperature, reason = read_temperature(file, tta)
    if reason:
        log.warning("probabilities are not calibrated: %s", reason)
    return classifier


def load_classifier(path: Path, extra_targets: Sequence[str] = ()) -> "Classifier":
    """Build the network that a checkpoint describes and load its weights, without a temperature.

    Raises:
        DataError: if there is no intact checkpoint, or its weights do not fit the network's code.
        ConfigError: if it names a target that is not allowed.
    """
    from imago.model.adapt import build_network
    from imago.model.classifier import Classifier
    from imago.runs.checkpoint import read_checkpoint

    file = checkpoint_path(path)
    checkpoint = read_checkpoint(file)
    try:
        hparams: dict[str, Any] = checkpoint["hyper_parameters"]
        settings = dict(hparams["net"])
        preprocess = Preprocess.from_dict(hparams["preprocess"])
        class_names = tuple(hparams["class_names"])
        state = {k.removeprefix(_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(_PREFIX)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} does not describe a network ({error!r}); it was changed after saving.") from error
    if "weights" in settings:
        settings["weights"] = None  # all weights are in the checkpoint: no pretrained file is read or downloaded
    net = build_network(settings, len(class_names), preprocess.size, extra_targets)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{file}: the weights do not fit {settings['_target_']} as its code is now: {reason}"
        ) from error
    return Classifier(net, class_names, preprocess).eval()


def check_compatible(file: Path, task: "ClassificationTask") -> None:
    """Check that a run can resume from a checkpoint, before Lightning loads it.

    Args:
        file: `last.ckpt` of the run.
        task: built from the current settings and data.

    Raises:
        DataError: if it is damaged, or has another network or other classes.
    """
    from imago.runs.checkpoint import read_checkpoint

    try:
        saved = read_checkpoint(file)
    except DataError as error:
        raise DataError(f"{error} Copy best.ckpt over it to resume from the best epoch.") from error
    if not saved.keys() >= {"loops", "optimizer_states", "state_dict", "hyper_parameters"}:
        raise DataError(f"{file} has no training state to resume from; it was changed after saving.")
    classes = list(saved["hyper_parameters"].get("class_names", ()))
    if classes != list(task.hparams["class_names"]):
        raise DataError(f"{file} has the classes {classes}, and the data has {task.hparams['class_names']}.")
    before, now = ({k: tuple(v.shape) for k, v in state.items()} for state in (saved["state_dict"], task.state_dict()))
    for name in before | now:
        if before.get(name) != now.get(name):
            raise DataError(
                f"{file} has another network than the current code: {name} has the shape {before.get(name)} there and "
                f"{now.get(name)} here; restore the code, or start a new run."
            )


def checkpoint_path(path: Path, name: str = "best") -> Path:
    """Return the checkpoint file that `path` means.

    Args:
        path: the file itself, or a run directory.
        name: which one of a run directory: best, last, or a file, by its path or by its name in RUN/checkpoints.

    Raises:
        DataError: if there is none; the text starts with `path`.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist; type a run directory such as logs/latest, or a checkpoint file.")
    folder = path / "checkpoints"
    candidates = [folder / f"{name}.ckpt", *([] if name in ("best", "last") else [Path(name), folder / name])]
    found = next(filter(Path.is_file, candidates), None)
    if found is not None:
        return found
    others = ", ".join(sorted(file.stem for file in folder.glob("*.ckpt")))
    reason = f"it has {others}." if others else "it is not a run directory, or the run has not saved yet."
    wanted = f"checkpoint {name}" if "/" in name else f"checkpoints/{name.removesuffix('.ckpt')}.ckpt"
    raise DataError(f"{path} has no {wanted}; {reason}")


def check_settings(problems: Mapping[str, bool]) -> None:
    """Raise one ConfigError with one line for each problem that exists.

    Args:
        problems: message, and whether the problem exists.
    """
    found = [message for message, exists in problems.items() if exists]
    if found:
        raise ConfigError("\n".join(found))


def find_model(run: str | None, ckpt: str | None, accelerator: str) -> Path:
    """Return the file that the settings `run` and `ckpt` mean; loads no torch.

    Raises:
        ConfigError: if there is none, or a setting cannot work.
    """
    path = Path(run or "")
    is_file, is_gpu = path.is_file(), accelerator == "gpu"
    check_settings(
        {
            f"run={run or ''} is empty; type a run directory such as logs/latest, or an ONNX file.": not run,
            f"ckpt={ckpt or ''} is not best, last or a file.": not ckpt,
            f"ckpt={ckpt} selects a checkpoint of a run directory, but run={run} is a file.": ckpt != "best"
            and is_file,
            f"accelerator={accelerator} is not one of {', '.join(_ACCELERATORS)}.": accelerator not in _ACCELERATORS,
            f"accelerator=gpu: run={run} is an ONNX file, which runs on the CPU here.": is_gpu and is_onnx(path),
        }
    )
    try:
        return checkpoint_path(path, str(ckpt))
    except DataError as error:
        raise ConfigError(f"run={error}") from error


def run_directory(path: Path) -> Path | None:
    """Return the absolute run directory of a checkpoint or an exported file, or the directory itself; else None."""
    if path.is_dir():
        return path.resolve()
    parents = path.resolve().parents
    return next((folder for folder in parents[1:3] if (folder / "config.yaml").is_file()), None)


def is_onnx(path: Path) -> bool:
    """Return whether a file is an ONNX file, by its name."""
    return path.suffix.lower() == ".onnx"


def find_device(accelerator: str) -> "torch.device":
    """Return the device that the setting `accelerator` means.

    Raises:
        ConfigError: if it asks for a GPU and there is none.
    """
    import torch

    device = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    if device is None and accelerator == "gpu":
        raise ConfigError("accelerator=gpu: torch finds no GPU here; accelerator=auto uses the CPU.")
    return device or torch.device("cpu")
