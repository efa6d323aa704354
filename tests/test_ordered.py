"""Work in threads: results in order, not too far ahead, and nothing lost when it ends early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch

from flowcli.ordered import in_order
from flowcli.scoring.rows import pieces


def idle(threads: set[threading.Thread]) -> bool:
    """Whether all other threads than these are gone, before long."""
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    return not set(threading.enumerate()) - threads


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before, own = set(threading.enumerate()), torch.get_num_threads()
    yield
    assert idle(before)
    assert torch.get_num_threads() == own


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_results_are_in_order_whichever_is_ready_first(n: int, threads: int) -> None:
    def slow(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    assert list(in_order(slow, iter(range(n)), threads)) == [i * i for i in range(n)]


def test_threads_compute_side_by_side_and_each_alone() -> None:
    meeting = threading.Barrier(3, timeout=10)

    def meet(_: int) -> tuple[str, int]:
        meeting.wait()
        return threading.current_thread().name, torch.get_num_threads()

    results = in_order(lambda i: meet(i) if i else ("", 1), range(7), 3)
    assert next(results) == ("", 1)
    found = list(results)
    assert len({name for name, _ in found}) == 3
    assert {threads for _, threads in found} == {1}


def test_the_first_item_is_computed_with_all_of_torchs_threads() -> None:
    def here(_: int) -> tuple[threading.Thread, int]:
        return threading.current_thread(), torch.get_num_threads()

    first, second = in_order(here, [0, 1], 4)
    assert first == (threading.current_thread(), torch.get_num_threads())
    assert second[0] != first[0]


def test_when_all_are_alike_the_first_has_one_thread_too() -> None:
    assert {*in_order(lambda _: torch.get_num_threads(), range(5), 2, alike=True)} == {1}
    callers = {*in_order(lambda _: threading.current_thread(), range(5), 2, alike=True)}
    assert threading.current_thread() not in callers


def test_items_are_taken_only_a_little_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(1000):
            taken = i + 1
            yield i

    for given, _ in enumerate(in_order(lambda i: i, items(), 2), 1):
        assert taken <= given + 6


def failing_items() -> Iterator[int]:
    yield from range(20)
    raise KeyError("items")


def fail_at_20(i: int) -> int:
    if i == 20:
        raise KeyError("function")
    return i


@pytest.mark.parametrize(
    ("function", "items", "message"),
    [(lambda i: i, failing_items, "items"), (fail_at_20, lambda: iter(range(50)), "function")],
)
def test_what_is_raised_comes_out_and_all_stops(
    function: Callable[[int], int], items: Callable[[], Iterator[int]], message: str
) -> None:
    found = []

    def use() -> None:
        for result in in_order(function, items(), 2):
            found.append(result)

    with pytest.raises(KeyError, match=message):
        use()
    assert found == list(range(20))


@pytest.mark.parametrize("n", [1, 3])
def test_a_result_does_not_wait_for_later_items(n: int) -> None:
    more = threading.Event()

    def items() -> Iterator[int]:
        yield from range(n)
        assert more.wait(10)
        yield n

    results = in_order(lambda i: i, items(), 2)
    assert [next(results) for _ in range(n)] == [*range(n)]
    more.set()
    assert [*results] == [n]


def test_who_wants_no_more_does_not_wait() -> None:
    begun, release = [], threading.Event()

    def stuck(i: int) -> int:
        begun.append(i)
        if i > 1:
            release.wait(10)
        return i

    results = in_order(stuck, range(1000), 2)
    assert [next(results), next(results)] == [0, 1]
    before = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - before < 5
    release.set()
    assert len(begun) <= 6


def test_rows_are_cut_into_pieces_in_order_smaller_where_values_are_missing() -> None:
    whole = pa.RecordBatch.from_pydict({"x": np.arange(10.0)})
    holey = pa.RecordBatch.from_pydict({"x": [1.0, None, 3.0, 4.0, 5.0]})
    found = list(pieces([("a", whole), ("b", holey)], 2, row=100, together=3))
    assert [(piece.row, piece.file, piece.batch.num_rows) for piece in found] == [
        (100, "a", 6), (106, "a", 4), (110, "b", 2), (112, "b", 2), (114, "b", 1)
    ]  # fmt: skip
    assert pa.concat_batches([piece.batch for piece in found]).equals(pa.concat_batches([whole, holey]))
