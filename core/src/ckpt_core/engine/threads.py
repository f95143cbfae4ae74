"""Carrying out transfers in threads of this process."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.results import Result
from ckpt_core.engine.transfer import TargetFiles, run_transfer
from ckpt_core.tensors.source import SourceFiles

_FEW = 1 << 20  # bytes: fewer are moved before threads have been started

Finished = Generator[tuple[Transfer, Result], None, None]
"""Transfers in the order in which they were finished."""


def in_threads(
    todo: Sequence[Transfer], source: SourceFiles, sink: TargetFiles | None, workers: int, in_step: bool = False
) -> Finished:
    """Carry out transfers in threads of this process, or in this one where there is little to do; the first error ends it. Without a sink
    nothing is written. `in_step`: those at work are of so many that follow one another as all workers may have at once, and one that takes long lets the others wait."""
    if sum(transfer.bytes_read for transfer in todo) < _FEW:
        yield from ((transfer, run_transfer(transfer, source, sink)) for transfer in todo)
        return
    waiting = iter(todo)
    running: dict[Future, tuple[int, Transfer]] = {}
    begun = 0
    with ThreadPoolExecutor(workers, "transfer") as pool:
        try:
            while True:
                first = next((number for number, _ in running.values()), begun) if in_step else begun - len(running)
                for transfer in itertools.islice(waiting, 2 * workers - (begun - first)):
                    running[pool.submit(run_transfer, transfer, source, sink)] = begun, transfer
                    begun += 1
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future)[1], future.result()
        finally:
            for future in running:
                future.cancel()
