"""Batches that fit into memory: halved where they do not, so that an evaluation goes on."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..backbones.devices import explain_out_of_memory, is_out_of_memory
from ..errors import OvssError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass
class FittingBatches:
    """Split batches into parts that fit into memory.

    Attributes:
        divisible: whether a batch may be split at all; not if its images depend on one another.
        largest: items at once; None, until memory was full for the first time.
    """

    divisible: bool = True
    largest: int | None = None

    def map(
        self, process: Callable[[Sequence[Item]], Sequence[Answer]], items: Sequence[Item]
    ) -> list[Answer]:
        """Process a batch, in smaller parts where memory is full; the answers are in its order.

        Raises:
            OvssError: memory is full with a single item, or with a batch that must stay whole.
        """
        answers: list[Answer] = []
        while len(answers) < len(items):
            left = len(items) - len(answers)
            size = min(self.largest or left, left)
            try:
                answers += process(items[len(answers) : len(answers) + size])
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1 or not self.divisible:
                    raise OvssError(explain_out_of_memory(error)) from None
            self._halve(size)  # out of the handler: the exception holds what is to be freed
        return answers

    def _halve(self, size: int) -> None:
        """Free what the attempt left, and remember the size to go on with."""
        self.largest = size // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"ovss: memory was full with {size} images at once: going on with {self.largest}",
            file=sys.stderr,
        )
