"""The loop: epochs of steps, an evaluation after each, and what to do when numbers stop being numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flowcli.baseline import Baseline
from flowcli.data.codec import Codec, Rows
from flowcli.errors import TrainingError, UsageError
from flowcli.flows.flow import Flow
from flowcli.flows.spread import CHOICES, widest_as_good
from flowcli.recipe import Train, seconds
from flowcli.training import device as devices
from flowcli.training.clock import Clock
from flowcli.training.compiled import CannotCompile, LossAndGradient, compiled
from flowcli.training.encode import Encoded, Encoder
from flowcli.training.group import Group
from flowcli.training.progress import Evaluation, Progress
from flowcli.training.rows import Together, TrainingRows
from flowcli.training.state import Average, Counters, State, Tensors, copy_of, load_optimizer, optimizer_tensors
from flowcli.training.vector import as_vector, with_gradient

WARMUP = 0.02  # share of the fit in which the learning rate rises, at most 200 steps
MAX_SKIPPED = 3  # bad steps in a row before stepping back
MAX_RETREATS = 3
COMPILED_FROM = 10_000  # steps after which `train.compile: auto` compiles: they took longer than compiling will
COMPILING = 60.0  # seconds that must be left for it, and as many as the steps took
NO_DENSITY = -1e6  # the log-density that a held-out row without one counts with


class Interrupted(Exception):
    """A signal asked the fit to stop."""


class Diverged(TrainingError):
    """The numbers of a fit cannot be kept finite."""


class Trainer:
    """Fits ``flow`` to ``rows`` by maximum likelihood and keeps the weights best on ``held_out``.

    Batches and dequantisation noise are functions of (seed, epoch, window), so ``state``, taken at the end of each
    window, is all that a resumed fit needs. The processes of a ``group`` go the same way: what decides on it, such as a
    loss, a signal or the time, they first agree on.
    """

    def __init__(
        self, flow: Flow, codec: Codec, baseline: Baseline, rows: TrainingRows, held_out: Rows, settings: Train,
        progress: Progress, clock: Clock | None = None, group: Group | None = None,
    ) -> None:  # fmt: skip
        self.group = group or Group()
        self.device = self.group.device(devices.choose(settings.device))
        self.flow, self.codec, self.rows = flow, codec, rows
        self.settings, self.progress, self.clock = settings, progress, clock or Clock()
        self.dtype = next(flow.parameters()).dtype
        flow.to(self.device)
        self.group.copy(flow.state_dict().values())
        fits = devices.holds(self.device, rows.at_once * (codec.features + codec.context) * self.dtype.itemsize)
        self.home = self.device if fits else torch.device("cpu")
        self.stopped: Callable[[], bool] = lambda: False
        self.data: Encoded | None = None
        self.batch = batch_size(settings, len(rows))
        self.steps = len(rows) // self.batch
        if self.batch < self.group.size:
            raise UsageError(f"train.batch_size: {self.batch} rows are too few for {self.group.size} processes.")
        self.share = self.group.share(self.batch)
        self.vector = as_vector(flow)
        self.gradient = with_gradient(flow, self.vector)
        self.optimizer = torch.optim.AdamW(
            [self.vector], lr=settings.lr, weight_decay=settings.weight_decay, fused=self.device.type != "mps"
        )
        table_on_cpu = self.device.type == "cpu" and codec.shape is None
        alone = table_on_cpu and devices.narrow(flow, self.share.stop - self.share.start)
        self.threads = 1 if alone else torch.get_num_threads()  # of a step
        self.spread = settings.noise * baseline.spread(settings.noise_shape == "data").to(self.device, self.dtype)
        self.average = Average(flow, self.vector, settings.ema)
        self.max_seconds = seconds(settings.max_time) if settings.max_time else math.inf
        self.counters = Counters()
        self.encoder = Encoder(codec, baseline, settings.seed, self.device, self.home, self.dtype, self._poll)
        self.clock.lap("start-up")  # creating an optimizer imports much of torch
        self.held_out, self.held_out_rows = self.encoder.encode_held_out(held_out), len(held_out)
        self.state: State | None = None
        self.loss_and_gradient: LossAndGradient = self._uncompiled  # as the steps take it
        self.clock.lap("data")

    # -- the fit -------------------------------------------------------------------------------------------------

    def run(
        self,
        start: State | None = None,
        on_state: Callable[[State, Evaluation | None], None] = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> State:
        """Train from ``start`` or from the flow as it is; leave the best weights in the flow, however it ends.

        ``on_state`` hears of every state that can be gone on from, and of the evaluation at an epoch's end; ``stopped``
        is asked at every step, and as often while encoding and evaluating. Raises Diverged when the numbers cannot
        be kept finite, Interrupted when ``stopped`` says so, DataError when rows cannot be read any more.
        """
        self.on_state, self.stopped = on_state, stopped
        self.progress.begin(
            self.settings.epochs, self.steps, sum(p.numel() for p in self.flow.parameters()),
            len(self.rows), self.held_out_rows, self.device.type,
        )  # fmt: skip
        if start is None:
            evaluation, self.state = self._evaluate(math.nan, 0.0, None)
            self._save(self.state, evaluation)
        else:
            self.state = start
            self._restore(start)
        self.began = time.monotonic() - self.counters.seconds
        try:
            while not self.state.counters.finished and self._goes_on():
                self.state = self._epoch(self.state)
            self.state.counters.finished = True
        finally:
            self.progress.end()
            self.flow.load_state_dict(self.state.best)
        return self.state

    def _goes_on(self) -> bool:
        c = self.counters
        patient = c.epoch - c.best_epoch < self.settings.patience
        return c.epoch < self.settings.epochs and patient and c.seconds < self.max_seconds

    def _epoch(self, last: State) -> State:
        """One epoch, and its evaluation; or the last state again with half the rate, when it went wrong."""
        c, began, before = self.counters, time.monotonic(), self.counters.taken
        for data in self._windows(c.epoch):
            if c.taken > before:  # a state after each window, and at the epoch's end an evaluation with it
                last = self.state = self._take_down(last.best)
                self._save(last, None)
            with devices.threads(self.threads):
                went_well = self._window(data)
            if not went_well:
                return self._step_back(last)
            if c.seconds >= self.max_seconds:
                break
        train = (c.log_det - c.loss) / max(c.taken, 1)
        rate = (c.taken - before) * self.batch / (time.monotonic() - began)
        c.epoch, c.window, c.taken, c.loss, c.log_det = c.epoch + 1, 0, 0, 0.0, 0.0
        evaluation, state = self._evaluate(train, rate, last)
        self._save(state, evaluation)
        self.progress.evaluated(evaluation)
        return state

    def _window(self, data: Encoded) -> bool:
        """The steps of a window; False when too many in a row went wrong."""
        self.clock.lap("data")
        c = self.counters
        self.loss_and_gradient = self._compiled if self._worth_compiling() else self._uncompiled
        self.flow.train()
        shuffle = torch.Generator().manual_seed(_seed(self.settings.seed, c.epoch, 2 * c.window))
        noise = torch.Generator(self.device).manual_seed(_seed(self.settings.seed, c.epoch, 2 * c.window + 1))
        order = torch.randperm(len(data.y), generator=shuffle).to(self.home)
        total, taken = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for start in range(0, len(order) - self.batch + 1, self.batch):
            loss = self._step(data, order[start : start + self.batch], noise)
            if loss is None:
                c.skipped, c.bad = c.skipped + 1, c.bad + 1
                if c.bad > MAX_SKIPPED:
                    return False
            else:
                total, taken, c.bad = total + loss, taken + 1, 0
            c.step += 1
            c.seconds = self._elapsed()
            self.progress.step(c.epoch + 1, self._done())
            if c.seconds >= self.max_seconds:
                break
        c.window, c.taken = c.window + 1, c.taken + taken
        c.loss, c.log_det = c.loss + float(total), c.log_det + taken * data.log_det
        return True

    def _step(self, data: Encoded, index: Tensor, noise: torch.Generator) -> Tensor | None:
        """One step on the rows at ``index``; None, and nothing changed, when loss or gradient is not finite. Raises
        Interrupted."""
        self.clock.lap("other")
        y, context = self._batch(data, index[self.share])
        if self.settings.noise:
            shape = (len(index), y.shape[1])
            drawn = torch.randn(shape, generator=noise, dtype=y.dtype, device=y.device)
            drawn = drawn[self.share]
            y = y + (drawn @ self.spread if self.spread.ndim == 2 else drawn * self.spread)
        self.clock.lap("data")
        loss, gradient = self.loss_and_gradient(y, context)
        loss, stopped = self.group.mean(loss, gradient, len(y) / len(index), self.stopped())
        if stopped:
            raise Interrupted
        norm, value = torch.stack([gradient.norm(), loss]).tolist()  # a device is waited for once
        if not math.isfinite(norm + value):
            return None
        if norm > self.settings.clip:
            gradient.mul_(self.settings.clip / norm)
        self.vector.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.step()
        self.average.update()
        self.clock.lap("optimizer")
        return loss.double()

    def _batch(self, data: Encoded, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        context = None if data.context is None else data.context[index].to(self.device)
        return data.y[index].to(self.device), context

    def _worth_compiling(self) -> bool:
        """What ``auto`` decides hangs on the steps and not on the clock, unless the fit does: a resumed fit takes the
        same steps."""
        if self.settings.compile != "auto":
            return self.settings.compile
        taken, all_steps = self.counters.step, self.settings.epochs * self.steps
        table_on_cpu = self.device.type == "cpu" and self.codec.shape is None
        time_left = self.max_seconds - self.counters.seconds > max(COMPILING, self.counters.seconds)
        return table_on_cpu and time_left and taken >= COMPILED_FROM and all_steps >= 2 * COMPILED_FROM

    def _uncompiled(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loss = -self.flow(y, context).mean()
        self.clock.lap("forward")
        self.gradient.zero_()
        loss.backward()
        self.clock.lap("backward")
        return loss.detach(), self.gradient

    @cached_property
    def _compiled(self) -> LossAndGradient:
        """For batches of the steps' size; uncompiled where that cannot be, and if it was asked for, says why."""
        self.progress.note("compiling the steps, which takes a minute or so; this epoch's rate counts it")
        self.clock.lap("other")
        some = torch.arange(self.batch, device=self.home)[self.share] % len(self.held_out.y)
        try:
            faster = compiled(self.flow, self.vector, *self._batch(self.held_out, some))
        except CannotCompile as error:
            if self.settings.compile != "auto":
                self.progress.say(f"train.compile: the steps are taken uncompiled: {error}.")
            return self._uncompiled
        finally:
            self.clock.lap("compiling")

        def loss_and_gradient(y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            found = faster(y, context)
            self.clock.lap("forward and backward")
            return found

        return loss_and_gradient

    def _poll(self) -> None:
        if self.group.any(self.stopped()):
            raise Interrupted

    def _elapsed(self) -> float:
        """Seconds since the fit began; the first process's, if anything hangs on it."""
        seconds = time.monotonic() - self.began
        return seconds if math.isinf(self.max_seconds) else self.group.firsts(seconds)

    def _done(self) -> float:
        """The share of the fit that is over, by steps or by time, whichever is further."""
        by_steps = self.counters.step / (self.settings.epochs * self.steps)
        return min(max(by_steps, self.counters.seconds / self.max_seconds), 1.0)

    def _lr(self) -> float:
        """Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017)."""
        warmup = max(1, min(200, round(WARMUP * self.settings.epochs * self.steps)))
        rise = min(1.0, (self.counters.step + 1) / warmup)
        return self.settings.lr * self.counters.rate * rise * 0.5 * (1 + math.cos(math.pi * self._done()))

    # -- states --------------------------------------------------------------------------------------------------

    def _evaluate(self, train: float, rate: float, last: State | None) -> tuple[Evaluation, State]:
        """Measure the averaged weights on the held-out rows and take the state down."""
        self.clock.lap("other")
        c = self.counters
        log_prob = self._held_out_log_prob()
        if self.held_out.log_q is not None:  # log 1/k Σ p(x_O, m)/q(m)
            weights = log_prob.view(self.held_out.log_q.shape) - self.held_out.log_q
            log_prob = torch.logsumexp(weights, 1) - math.log(weights.shape[1])
        # A row without any density would make every mean −∞, and no epoch better than another.
        log_prob = torch.nan_to_num(log_prob, nan=NO_DENSITY, neginf=NO_DENSITY)
        held_out = float(log_prob.mean()) + self.held_out.log_det
        better = held_out > c.best or last is None
        if better:
            c.best, c.best_epoch = held_out, c.epoch
        best = copy_of(self.average.module) if better or last is None else last.best
        self.clock.lap("evaluation")
        evaluation = Evaluation(c.epoch, c.step, train, held_out, c.best_epoch, self._lr(), c.skipped, rate, c.seconds)
        return evaluation, self._take_down(best)

    @torch.no_grad()
    def _held_out_log_prob(self) -> Tensor:
        """``(rows,)``, of the averaged weights, whose parts take the spreads that suit these rows best."""
        averaged = self.average.module
        assert isinstance(averaged, Flow)
        averaged.eval()
        spreads = averaged.spreads
        if spreads:
            log_probs = self._of_held_out(len(spreads) * len(CHOICES), averaged.under_choices)
            for spread, under in zip(spreads, log_probs.split(len(CHOICES)), strict=True):
                spread.copy_(widest_as_good(under.nan_to_num(NO_DENSITY, neginf=NO_DENSITY)))
        return self._of_held_out(1, averaged)[0]

    def _of_held_out(self, k: int, figures: Callable[..., Tensor]) -> Tensor:
        """``(k, rows)``: the ``(k, n)`` that ``figures`` makes of encoded rows and their context, a chunk at a time."""
        found, chunk = torch.zeros(k, len(self.held_out.y), dtype=torch.float64), self.codec.rows_at_once
        for i in range(0, found.shape[1], chunk):
            self._poll()
            share = self.group.share(min(chunk, found.shape[1] - i))
            mine = slice(i + share.start, i + share.stop)
            if mine.stop > mine.start:
                found[:, mine] = figures(*self._batch(self.held_out, mine)).double().cpu()
        return self.group.sum(found)

    def _save(self, state: State, evaluation: Evaluation | None) -> None:
        self.on_state(state, evaluation)
        self.clock.lap("saving")

    def _take_down(self, best: Tensors) -> State:
        """All that the fit is now."""
        self.counters.averaged, self.counters.processes = self.average.count, self.group.size
        return State(
            copy_of(self.flow), copy_of(self.average.module), best, optimizer_tensors(self.optimizer),
            Counters(**asdict(self.counters)),
        )  # fmt: skip

    def _restore(self, state: State) -> None:
        self.flow.load_state_dict(state.weights)
        self.average.module.load_state_dict(state.average)
        self.average.count = state.counters.averaged
        load_optimizer(self.optimizer, state.optimizer)
        self.counters = Counters(**asdict(state.counters))

    def _step_back(self, last: State) -> State:
        """Return to ``last`` with half the rate. Raises Diverged when that was done often enough."""
        retreats, skipped, rate, seconds_ = (
            self.counters.retreats + 1, self.counters.skipped, self.counters.rate / 2, self.counters.seconds
        )  # fmt: skip
        if retreats > MAX_RETREATS:
            raise Diverged(
                f"training gave up at epoch {self.counters.epoch + 1}: loss or gradient was not finite again after "
                f"{MAX_RETREATS} returns with a smaller rate. The best model so far is kept. Try a smaller train.lr, "
                f"or transform the columns with the longest tails."
            )
        self._restore(last)
        self.counters.retreats, self.counters.skipped = retreats, skipped
        self.counters.rate, self.counters.seconds = rate, seconds_
        self.progress.say(
            f"loss or gradient was not finite {MAX_SKIPPED + 1} times in a row: back to the end of epoch "
            f"{last.counters.epoch} with {rate:g} of the rate"
        )
        return State(last.weights, last.average, last.best, last.optimizer, Counters(**asdict(self.counters)))

    # -- data ----------------------------------------------------------------------------------------------------

    def _windows(self, epoch: int) -> Iterator[Encoded]:
        """The windows that are left of an epoch: with new dequantisation noise and new values for missing ones each
        time, if there are such; else as they were in the first, which a fit that goes on has not seen."""
        for parts in self.rows.windows(epoch, self.counters.window):
            drawn = self.codec.dequantised or any(rows.missing is not None for _, rows in parts)
            if drawn or not isinstance(self.rows, Together):
                yield self.encoder.encode(parts, epoch, self.average.module)
            else:
                self.data = self.data or self.encoder.encode(parts, 0, self.average.module)
                yield self.data


def batch_size(settings: Train, rows: int) -> int:
    """The batch that ``auto`` means for so many rows: a thirty-second part, a power of two between 64 and 512."""
    if settings.batch_size != "auto":
        return min(settings.batch_size, rows)
    part = 1 << round(math.log2(max(rows / 32, 1)))
    return min(rows, max(64, min(512, part)))


def _seed(*words: int) -> int:
    state: list[int] = np.random.SeedSequence(words).generate_state(1, np.uint32).tolist()
    return state[0]
