"""Samples in batches, read ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .base import Dataset, Sample, check_present

Batch = tuple[Sequence[int], list[Sample]]
AHEAD = 2  # batches that are being read while one is being worked on


def read_batches(
    data: Dataset, indices: Sequence[int], batch: int, workers: int = 0
) -> Iterator[Batch]:
    """Give the samples at `indices`, in order, as (indices, samples) of `batch` images.

    Args:
        data: the benchmark.
        indices: which samples.
        batch: images in a batch; the last one may be smaller.
        workers: threads that read; with 0 files are read when they are needed.

    Raises:
        DatasetError: a file of any of them is missing (told before the first is read), or damaged.
    """
    check_present(data, indices)
    chunks = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    if workers == 0:
        yield from ((chunk, [data[index] for index in chunk]) for chunk in chunks)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        ahead: deque[list[Future[Sample]]] = deque()
        for position, chunk in enumerate(chunks):
            for later in chunks[position + len(ahead) : position + AHEAD + 1]:
                ahead.append([pool.submit(data.__getitem__, index) for index in later])
            yield chunk, [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
