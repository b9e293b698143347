"""From a run directory, a checkpoint or an ONNX file to a network that can be used; an ONNX file needs no torch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from imago.errors import ConfigError, DataError
from imago.images import Preprocess
from imago.inference.calibration import read_temperature
from imago.instantiate import build
from imago.statistics.calibration import UNCALIBRATED
from imago.statistics.metrics import softmax

if TYPE_CHECKING:
    import torch

    from imago.model.classifier import Classifier
    from imago.task.classification import ClassificationTask

log = logging.getLogger(__name__)

_PREFIX = "net."  # of the network's keys in a checkpoint of the task
_ACCELERATORS = ("auto", "cpu", "gpu")


class Predictor(Protocol):
    """What evaluation and prediction ask of a trained network, whatever file it comes from."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; the place of a name is its label."""

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared for it."""

    @property
    def calibration_temperature(self) -> float:
        """What logits are divided by before the softmax; 1 where none was fitted."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 images (N, 3, size, size) to float32 logits (N, K)."""

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give logits and calibrated probabilities, (N, K) each."""


class TorchPredictor:
    """A network in torch, in fp32 whatever it was trained in.

    Args:
        model: as `load_classifier` or `load_calibrated` gives it.
        device: where it computes.
        tta: views of each image to take the mean of, see `imago.task.tta`.

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

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 images (N, 3, size, size) to float32 logits (N, K)."""
        import torch

        from imago.task.tta import predict_with_tta

        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            return predict_with_tta(self.model, torch.from_numpy(images).to(self._device), self._tta).cpu().numpy()

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give logits and calibrated probabilities, (N, K) each."""
        logits = self.logits(images)
        return logits, softmax(logits / self.calibration_temperature)


def load_predictor(
    path: Path,
    ckpt: str = "best",
    extra_targets: Sequence[str] = (),
    accelerator: str = "auto",
    tta: str = "none",
) -> Predictor:
    """Make a trained network ready to map images to logits.

    Args:
        path: a run directory, a checkpoint file, or an ONNX file, for which torch is not even loaded.
        ckpt: which checkpoint of a run directory: best, last, or a file.
        extra_targets: packages that the checkpoint's network may come from, as the user typed them.
        accelerator: auto, cpu or gpu; an ONNX file runs on the CPU.
        tta: views of each image to take the mean of, see `imago.task.tta`; a checkpoint only.

    Raises:
        DataError: if there is no sound checkpoint or ONNX file of this project.
        ConfigError: if the accelerator is not there, or the checkpoint names a target that is not allowed.
    """
    if is_onnx(path):
        from imago.artifact import OnnxClassifier

        exported = OnnxClassifier(path)
        if exported.calibration_temperature == UNCALIBRATED:
            log.warning("probabilities are not calibrated: %s was exported without a temperature", path)
        return exported
    classifier = load_calibrated(checkpoint_path(path, ckpt), extra_targets, tta)
    return TorchPredictor(classifier, find_device(accelerator), tta)


def load_calibrated(path: Path, extra_targets: Sequence[str] = (), tta: str = "none") -> "Classifier":
    """Load a network with the temperature fitted for its checkpoint and these views; warn where there is none."""
    file = checkpoint_path(path)
    classifier = load_classifier(file, extra_targets)
    classifier.calibration_temperature, reason = read_temperature(file, tta)
    if reason:
        log.warning("probabilities are not calibrated: %s", reason)
    return classifier


def load_classifier(path: Path, extra_targets: Sequence[str] = ()) -> "Classifier":
    """Rebuild the network that a checkpoint describes and fill in its weights, uncalibrated."""
    from imago.model.classifier import Classifier
    from imago.runs.checkpoint import read_checkpoint

    file = checkpoint_path(path)
    checkpoint = read_checkpoint(file)
    try:
        settings: dict[str, Any] = checkpoint["hyper_parameters"]
        preprocess = Preprocess.from_dict(settings["preprocess"])
        facts: dict[str, Any] = {"num_classes": len(settings["class_names"]), "image_size": int(preprocess.size)}
        net_settings = dict(settings["net"])
        state = {k.removeprefix(_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(_PREFIX)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file} does not describe a network ({error!r}); it was changed after it was saved."
        ) from error
    if "weights" in net_settings:
        facts["weights"] = None  # all weights are in the checkpoint: no pretrained file is read or downloaded
    net = build(net_settings, extra_targets=extra_targets, **facts)
    if not hasattr(net, "load_state_dict"):
        raise ConfigError(f"{file} names {net_settings.get('_target_')} as its network, which is none.")
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{file}: the weights do not fit {net_settings['_target_']} as its code is now: {reason}"
        ) from error
    return Classifier(net, settings["class_names"], preprocess).eval()


def check_continues(file: Path, task: "ClassificationTask") -> None:
    """See that a run can go on from a checkpoint, before Lightning takes it apart.

    Args:
        file: `last.ckpt` of the run.
        task: built for the settings and data of now.

    Raises:
        DataError: if it is damaged, or of another network or other classes.
    """
    from imago.runs.checkpoint import read_checkpoint

    try:
        saved = read_checkpoint(file)
    except DataError as error:
        raise DataError(f"{error} best.ckpt, copied over it, goes on from the best epoch.") from error
    if not saved.keys() >= {"loops", "optimizer_states", "state_dict", "hyper_parameters"}:
        raise DataError(f"{file} has no state of a training that could go on; it was changed after it was saved.")
    classes = list(saved["hyper_parameters"].get("class_names", ()))
    if classes != list(task.hparams["class_names"]):
        raise DataError(f"{file} is of the classes {classes}, and the data has {task.hparams['class_names']}.")
    before, now = ({k: tuple(v.shape) for k, v in state.items()} for state in (saved["state_dict"], task.state_dict()))
    for name in before | now:
        if before.get(name) != now.get(name):
            raise DataError(
                f"{file} is of another network than the code makes now: {name} has the shape {before.get(name)} there "
                f"and {now.get(name)} here; bring the code back, or start a new run."
            )


def checkpoint_path(path: Path, name: str = "best") -> Path:
    """Give the checkpoint file that `path` means.

    Args:
        path: the file itself, or a run directory.
        name: which one of a run directory: best, last, or a file, by its path or by its name in RUN/checkpoints.

    Raises:
        DataError: if there is none; the text starts with `path`.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a run directory such as logs/latest, or a checkpoint file.")
    folder = path / "checkpoints"
    places = [folder / f"{name}.ckpt", *([] if name in ("best", "last") else [Path(name), folder / name])]
    for file in places:
        if file.is_file():
            return file
    others = ", ".join(sorted(file.stem for file in folder.glob("*.ckpt")))
    reason = f"it has {others}." if others else "it is no run directory, or the run has not saved yet."
    wanted = f"checkpoint {name}" if "/" in name else f"checkpoints/{name.removesuffix('.ckpt')}.ckpt"
    raise DataError(f"{path} has no {wanted}; {reason}")


def find_model(run: str | None, ckpt: str | None, accelerator: str) -> Path:
    """Give the file that the settings `run` and `ckpt` mean, and refuse what cannot work; loads no torch.

    Raises:
        ConfigError: naming the setting.
    """
    if not run:
        raise ConfigError(f"run={run or ''} names nothing; give a run directory such as logs/latest, or an ONNX file.")
    if not ckpt:
        raise ConfigError(f"ckpt={ckpt or ''} is neither best nor last nor a file.")
    if accelerator not in _ACCELERATORS:
        raise ConfigError(f"accelerator={accelerator} is not one of {', '.join(_ACCELERATORS)}.")
    path = Path(run)
    if path.is_file() and ckpt != "best":
        raise ConfigError(f"ckpt={ckpt} chooses among the checkpoints of a run, but run={run} is a file.")
    if is_onnx(path) and accelerator == "gpu":
        raise ConfigError(f"accelerator=gpu: run={run} is an ONNX file, which runs on the CPU here.")
    try:
        return checkpoint_path(path, ckpt)
    except DataError as error:
        raise ConfigError(f"run={error}") from error


def run_directory(path: Path) -> Path | None:
    """Give the run directory that a checkpoint or an exported file lies in, absolute, or a folder itself; else None."""
    if path.is_dir():
        return path.resolve()
    parents = path.resolve().parents
    return next((folder for folder in parents[1:3] if (folder / "config.yaml").is_file()), None)


def is_onnx(path: Path) -> bool:
    """Tell an exported file from a checkpoint by its name."""
    return path.suffix.lower() == ".onnx"


def find_device(accelerator: str) -> "torch.device":
    """Give the device that the setting `accelerator` means.

    Raises:
        ConfigError: if it asks for a GPU that is not there.
    """
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator == "gpu":
        raise ConfigError("accelerator=gpu: torch finds no GPU here; accelerator=auto takes the CPU.")
    return torch.device("cpu")
