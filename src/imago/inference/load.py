"""Load a trained network from a run directory, a checkpoint or an ONNX file; an ONNX file needs no torch."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from imago.errors import ConfigError, DataError
from imago.images import Preprocess
from imago.inference.calibration import read_detector, read_sets, read_temperature
from imago.inference.find_model import is_onnx, resolve_checkpoint
from imago.resources import choose_threads
from imago.statistics.calibration import UNCALIBRATED
from imago.statistics.metrics import softmax
from imago.text import printable
from imago.trust import check_saved_targets, without_files

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from torch import nn

    from imago.model.classifier import Classifier
    from imago.onnx_classifier import OnnxClassifier

log = logging.getLogger(__name__)

# Fields of a checkpoint as `check_structure` wants them; checkpoints of other tasks may lack the second ones.
_PREPROCESS = {"size": 0, "resize": 0, "crop": "", "mean": [0.0, 0.0, 0.0], "std": [0.0, 0.0, 0.0]}
_HPARAMS = {"net": {"_target_": ""}, "class_names": [], "preprocess": _PREPROCESS}
_OPTIONAL_HPARAMS: dict[str, Any] = {"metrics": {}, "output_names": [], "predicts_classes": True}
_TRAINING_STATE: dict[str, Any] = {
    **{"epoch": 0, "global_step": 0, "pytorch-lightning_version": "", "state_dict": {}, "callbacks": {}},
    **{"optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {}},
    "loops": {
        "fit_loop": {
            "epoch_progress": {"current": {"processed": 0}},
            "epoch_loop.batch_progress": {"total": {"processed": 0}},
        }
    },
}
_BUILD_ERRORS = (ConfigError, TypeError, ValueError, RuntimeError, MemoryError)  # of a class with saved arguments
_NET_PREFIX = "net."  # of the network's keys in a checkpoint of the task


class TorchPredictor:
    """A torch network that predicts in fp32, whatever precision it was trained in; used like an `OnnxClassifier`.

    Args:
        classifier: the network with its classes and preprocess record, in eval mode.
        accelerator: auto (a GPU if there is one), cpu or gpu.
        tta: views of each image to average, see `imago.task.tta`.

    Attributes:
        classifier: the network in float32, on that device.

    Raises:
        ConfigError: if `accelerator` is gpu and there is none.
    """

    def __init__(self, classifier: "Classifier", accelerator: str, tta: str = "none") -> None:
        import torch

        device = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
        if device is None and accelerator == "gpu":
            raise ConfigError("accelerator=gpu: torch finds no GPU; accelerator=auto uses the CPU.")
        self.class_names = classifier.class_names
        self.preprocess = classifier.preprocess
        self.calibration_temperature = classifier.calibration_temperature
        self.prediction_sets = classifier.prediction_sets
        self.unknown_detector = classifier.unknown_detector
        self.predicts_classes = classifier.predicts_classes
        torch.backends.cudnn.allow_tf32 = False  # the default rounds fp32 convolutions to a mantissa of 10 bits
        self._device = device or torch.device("cpu")
        self._tta = tta
        self.classifier = classifier.float().to(self._device).to(memory_format=classifier.normalize.memory_format)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map uint8 images (N, 3, size, size) to float32 logits and calibrated probabilities, (N, K) each."""
        import torch

        from imago.task.tta import predict_with_tta

        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            inputs = torch.from_numpy(images).to(self._device)
            logits = predict_with_tta(self.classifier, inputs, self._tta).cpu().numpy()
        return logits, softmax(logits / self.calibration_temperature)


Predictor: TypeAlias = "TorchPredictor | OnnxClassifier"


def load_predictor(
    path: Path,
    accelerator: str = "auto",
    tta: str = "none",
    is_calibrated: bool = True,
    trust: Sequence[str] = (),
    threads: int | str | None = None,
) -> Predictor:
    """Load a trained network that maps images to logits.

    Args:
        path: a run directory (its best checkpoint), a checkpoint file, or an ONNX file (loaded without torch).
        accelerator: auto, cpu or gpu; an ONNX file runs on the CPU.
        tta: views of each image to average, see `imago.task.tta`; for a checkpoint only.
        is_calibrated: whether to load a checkpoint's temperature, and to log a warning if there is none.
        trust: packages outside this project that the checkpoint's network may come from, as typed by the user.
        threads: CPU threads, or auto as `choose_threads` takes it; None: as the runtime is set.

    Raises:
        DataError: if there is no intact checkpoint or ONNX file of this project.
        ConfigError: if the accelerator is missing, or the checkpoint names a class that is not trusted.
    """
    if is_onnx(path):
        import onnxruntime  # noqa: F401  # it takes some tenths of a second, in which idle cores are counted

        from imago.onnx_classifier import OnnxClassifier

        exported = OnnxClassifier(path, 0 if threads is None else choose_threads(threads))
        if exported.calibration_temperature == UNCALIBRATED:
            text = "probabilities are not calibrated: %s has the temperature 1, as none was fitted or it did not help"
            log.warning(text, printable(path))
        return exported
    classifier = load_calibrated(path, trust, tta) if is_calibrated else load_classifier(path, trust)
    if threads is not None:
        import torch

        torch.set_num_threads(choose_threads(threads))
    return TorchPredictor(classifier, accelerator, tta)


def load_calibrated(path: Path, trust: Sequence[str] = (), tta: str = "none") -> "Classifier":
    """Load a network with the temperature fitted for its checkpoint and these views; log a warning if there is none."""
    file = resolve_checkpoint(path)
    classifier = load_classifier(file, trust)
    classifier.calibration_temperature, reason = read_temperature(file, tta)
    if reason:
        log.warning("probabilities are not calibrated: %s", printable(reason))
    else:
        classifier.prediction_sets = read_sets(file, tta)
        classifier.unknown_detector = read_detector(file, len(classifier.class_names), tta)
    return classifier


def load_classifier(path: Path, trust: Sequence[str] = ()) -> "Classifier":
    """Build the network that a checkpoint describes and load its weights, without a temperature.

    Raises:
        DataError: if there is no intact checkpoint, or its weights do not fit the network's code.
        ConfigError: if it names a class that is not trusted.
    """
    from imago.model.adapt import build_network, choose_memory_format
    from imago.model.classifier import Classifier
    from imago.runs.checkpoint import read_checkpoint

    file = resolve_checkpoint(path)
    checkpoint = read_checkpoint(file)
    hparams = _hyper_parameters(checkpoint, file)
    settings, metrics, names = dict(hparams["net"]), dict(hparams["metrics"]), tuple(hparams["output_names"])
    try:
        preprocess = Preprocess.from_dict(hparams["preprocess"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: its field hyper_parameters.preprocess is invalid ({error}).") from error
    named = checkpoint["state_dict"].items()
    state = {name.removeprefix(_NET_PREFIX): value for name, value in named if str(name).startswith(_NET_PREFIX)}
    check_saved_targets(settings, "model", file, trust)
    check_saved_targets(metrics, "metrics", file, trust)
    settings = without_files(settings, file)
    try:
        net = build_network(settings, len(names), preprocess.size, preprocess.to_dict())
    except _BUILD_ERRORS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"{file}: {settings['_target_']} cannot be built with its saved arguments: {reason}") from error
    _load_weights(net, state, file, settings["_target_"])
    classifier = Classifier(net, names, preprocess).eval().requires_grad_(False)  # results convert to numpy
    classifier.normalize.memory_format = choose_memory_format(net, preprocess.size)
    classifier.network_settings, classifier.metrics = settings, metrics
    classifier.predicts_classes = hparams["predicts_classes"]
    return classifier


def _hyper_parameters(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the hyperparameters of an `ImageTask` in a checkpoint, after a check of its structure."""
    import torch

    from imago.runs.checkpoint import check_structure

    check_structure(checkpoint, {"hyper_parameters": {}, "state_dict": {}}, file)
    tensors = [name for name in checkpoint["state_dict"] if not str(name).endswith("_extra_state")]
    check_structure(checkpoint["state_dict"], dict.fromkeys(tensors, torch.zeros(())), file, "state_dict")
    hparams, task = checkpoint["hyper_parameters"], checkpoint["imago"].get("task")
    if task is not None and "output_names" not in hparams:
        raise ConfigError(
            f"{file} was saved by {task}, which is not derived from imago.task.base.ImageTask: it has no settings "
            "to rebuild its network from. The results of its own test are in summary.json."
        )
    if hparams.get("own_forward"):
        raise ConfigError(
            f"{file} was saved by {task}, which overrides `forward`: its network alone would give other outputs. The "
            "results of its own test are in summary.json."
        )
    check_structure(hparams, _HPARAMS, file, "hyper_parameters")
    given = {name: value for name, value in hparams.items() if value is not None}
    hparams = _OPTIONAL_HPARAMS | {"output_names": hparams["class_names"]} | given
    check_structure(hparams, _OPTIONAL_HPARAMS, file, "hyper_parameters")
    names = tuple(hparams["output_names"])
    check_structure(names, ("",) * len(names), file, "hyper_parameters.output_names")
    return hparams


def check_compatible(file: Path, task: "LightningModule") -> tuple[int, int]:
    """Check that a run can resume from `last.ckpt`, before Lightning loads it; `task` gets its weights.

    Return the number of epochs that the run has finished, and of optimizer steps that it has taken; with manual
    optimization, of batches.

    Raises:
        DataError: if it is damaged, or has another network or other classes.
    """
    from imago.runs.checkpoint import check_structure, read_checkpoint

    try:
        saved = read_checkpoint(file)
    except DataError as error:
        raise DataError(f"{error} Copy best.ckpt over it to resume from the best epoch.") from error
    check_structure(saved, _TRAINING_STATE, file)
    if "class_names" in task.hparams:
        check_structure(saved["hyper_parameters"], {"class_names": []}, file, "hyper_parameters")
    saved_names, names = (list(params.get("class_names", ())) for params in (saved["hyper_parameters"], task.hparams))
    if saved_names != names:
        raise DataError(
            f"{file} has the classes {saved_names}, and the data has {names}; use the same data, or start a new run."
        )
    if "net" in task.hparams:  # any other task may build layers in `setup`, after which Lightning loads the weights
        net = task.hparams["net"]
        network = net["_target_"] if isinstance(net, Mapping) else type(task).__name__
        _load_weights(task, saved["state_dict"], file, network)
    loop = saved["loops"]["fit_loop"]
    num_batches = loop["epoch_loop.batch_progress"]["total"]["processed"]
    num_steps = saved["global_step"] if task.automatic_optimization else num_batches
    return loop["epoch_progress"]["current"]["processed"], num_steps


def _load_weights(module: "nn.Module", state: Mapping[str, Any], file: Path, network: str) -> None:
    from imago.model.weights import MAX_REASON_CHARS

    versioned: Any = OrderedDict(state)  # with the versions of the modules, which torchvision's MNASNet requires
    versioned._metadata = getattr(state, "_metadata", None) or getattr(module.state_dict(), "_metadata", {})
    try:
        module.load_state_dict(versioned)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:MAX_REASON_CHARS]
        raise DataError(
            f"{file}: the weights do not fit {network} as its code is now; restore the code, or train again: {reason}"
        ) from error
