"""Work that several threads share, with its results in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


def in_order(function: Callable[[T], U], items: Iterable[T], threads: int, alike: bool = False) -> Iterator[U]:
    """``map(function, items)`` in so many threads, each of which computes alone what it has been given.

    One more thread takes the items, a few ahead, and the caller's gives out the results: reading, computing and what
    the caller does with a result, such as writing it, overlap. The first item, often the only one, is computed in the
    caller's thread, with all of torch's; not so when ``alike``: sums depend on how many threads share them, and then
    no result depends on which item was first.

    Raises what ``items`` or ``function`` raise, after the results before it. Then, and when the caller wants no more,
    nothing new is begun, and what is being read or computed is not waited for.
    """
    items = iter(items)
    yield from map(function, itertools.islice(items, 0 if alike else 1))
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    begun: SimpleQueue[Future[U] | None] = SimpleQueue()
    room = Semaphore(2 * threads)

    def take() -> None:
        try:
            for item in items:
                room.acquire()
                begun.put(pool.submit(function, item))  # which raises once the pool is shut
            begun.put(None)
        except BaseException as error:  # noqa: BLE001 (the caller's thread raises it)
            failed: Future[U] = Future()
            failed.set_exception(error)
            begun.put(failed)

    try:
        Thread(target=take, daemon=True).start()  # a read that never ends must not keep the process
        while (result := begun.get()) is not None:
            yield result.result()
            room.release()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        room.release()
        torch.set_num_threads(own)  # part of the setting is the process's, not the thread's
