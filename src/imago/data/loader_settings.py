"""Check `data.loader`, the further arguments of torch's DataLoader. Loads no torch."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

LOADER_ARGUMENTS = ("prefetch_factor", "pin_memory", "timeout", "multiprocessing_context", "persistent_workers")
# Arguments that would change which samples a batch has, and the setting to use instead.
_SETTING_INSTEAD = {
    **{"dataset": "data=dataset", "batch_size": "data.batch_size", "num_workers": "data.num_workers"},
    **dict.fromkeys(("shuffle", "sampler", "batch_sampler"), "data.sampler"),
    **{"collate_fn": "augment.extra_batch", "drop_last": "data.batch_size"},
    **dict.fromkeys(("worker_init_fn", "generator", "in_order"), "seed"),
}


def loader_problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each argument that cannot be set."""
    for name, value in arguments.items():
        if name in _SETTING_INSTEAD:
            yield f"data.loader.{name}={value}: the data module sets this argument; use {_SETTING_INSTEAD[name]}."
        elif name not in LOADER_ARGUMENTS:
            nearest = sorted(LOADER_ARGUMENTS, key=lambda known: -difflib.SequenceMatcher(None, name, known).ratio())
            yield f"data.loader.{name}={value} is not one of {', '.join(nearest)} (nearest first)."
