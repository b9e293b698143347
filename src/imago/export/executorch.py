"""Write a network for ExecuTorch, with the operators of XNNPACK, and run it; in the environment .venv-executorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imago.export.formats import Options
from imago.export.parity import BATCH_SIZES, Predict
from imago.export.torch_export import as_predict, export_program
from imago.model.classifier import Classifier

_FILE = "model.pte"
_MAX_BATCH_SIZE = max(BATCH_SIZES)  # memory is reserved for as many images


def write(classifier: Classifier, path: Path, metadata: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Write PATH/model.pte, for batches of 1 to 64 images, see `imago.export.onnx.write`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = export_program(classifier, _MAX_BATCH_SIZE)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.mkdir()
    (path / _FILE).write_bytes(lowered.buffer)
    return {"max_batch_size": _MAX_BATCH_SIZE}


def load(path: Path, num_threads: int) -> Predict:
    """Load the program."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    if num_threads:  # XNNPACK's default is every core
        _unsafe_reset_threadpool(num_threads)  # safe while no program runs
    program = Runtime.get().load_program(path / _FILE)
    method = program.load_method("forward")
    return as_predict(lambda images: method.execute([images]))
