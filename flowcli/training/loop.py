"""The loop: epochs of steps, an evaluation after each, and what to do when numbers stop being numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from flowcli.data.codec import Codec, Rows
from flowcli.data.noise import uniforms
from flowcli.errors import TrainingError
from flowcli.flows.flow import Flow
from flowcli.model import rows_at_once
from flowcli.recipe import Train, seconds
from flowcli.training import device as devices
from flowcli.training.progress import Evaluation, Progress
from flowcli.training.state import Counters, State, copy_of, ema_update, load_optimizer, optimizer_tensors

WARMUP = 0.02  # share of the fit in which the learning rate rises, at most 200 steps
MAX_SKIPPED = 3  # bad steps in a row before stepping back
MAX_RETREATS = 3
NO_DENSITY = -1e6  # the log-density that a held-out row without one counts with
HELD_OUT = 2**32  # the epoch whose dequantisation noise the held-out rows keep
COINS = 2**33  # added to an epoch for draws that are not its dequantisation noise


class Encoded(NamedTuple):
    """Rows as the flow sees them: ``y (n, features)``, context, and the mean of the codec's log-determinant."""

    y: Tensor
    context: Tensor | None
    log_det: float


class Interrupted(Exception):
    """A signal asked the fit to stop."""


class Trainer:
    """Fits ``flow`` to ``rows`` by maximum likelihood and keeps the weights best on ``held_out``.

    Batches and dequantisation noise are functions of (seed, epoch), so ``state``, taken at each epoch's end, is all
    that a resumed fit needs.
    """

    def __init__(
        self, flow: Flow, codec: Codec, rows: Rows, held_out: Rows, settings: Train, progress: Progress
    ) -> None:
        self.device = devices.choose(settings.device)
        self.flow, self.codec, self.rows, self.settings, self.progress = flow, codec, rows, settings, progress
        self.dtype = next(flow.parameters()).dtype
        flow.to(self.device)
        fits = devices.holds(self.device, len(rows) * (codec.features + codec.context) * self.dtype.itemsize)
        self.home = self.device if fits else torch.device("cpu")
        self.stopped: Callable[[], bool] = lambda: False
        self.held_out = self._encode(held_out, HELD_OUT)
        self.data: Encoded | None = None
        self.batch = batch_size(settings, len(rows))
        self.steps = len(rows) // self.batch
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=self.device.type != "mps"
        )
        self.average = AveragedModel(flow, multi_avg_fn=ema_update(settings.ema))
        self.max_seconds = seconds(settings.max_time) if settings.max_time else math.inf
        self.counters = Counters()
        self.state: State | None = None

    # -- the fit -------------------------------------------------------------------------------------------------

    def run(
        self,
        start: State | None = None,
        on_evaluation: Callable[[Evaluation, State], None] = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> State:
        """Train from ``start`` or from the flow as it is; leave the best weights in the flow, however it ends.

        ``on_evaluation`` hears of every epoch's end; ``stopped`` is asked at every step, and as often while encoding
        and evaluating. Raises TrainingError when the numbers cannot be kept finite, Interrupted when ``stopped`` says
        so.
        """
        self.stopped = stopped
        self.progress.begin(
            self.settings.epochs, self.steps, sum(p.numel() for p in self.parameters),
            len(self.rows), len(self.held_out.y), self.device.type,
        )  # fmt: skip
        if start is None:
            evaluation, self.state = self._evaluate(math.nan, 0.0, None)
            on_evaluation(evaluation, self.state)
        else:
            self.state = start
            self._restore(start)
        self.began = time.monotonic() - self.counters.seconds
        try:
            while self._goes_on():
                self.state = self._epoch(self.state, on_evaluation)
            self.state.counters.finished = True
        finally:
            self.progress.end()
            self.flow.load_state_dict(self.state.best)
        return self.state

    def _goes_on(self) -> bool:
        c = self.counters
        patient = c.epoch - c.best_epoch < self.settings.patience
        return c.epoch < self.settings.epochs and patient and c.seconds < self.max_seconds

    def _epoch(
        self,
        last: State,
        on_evaluation: Callable[[Evaluation, State], None],
    ) -> State:
        """One epoch, and its evaluation; or ``last`` again with half the rate, when it went wrong."""
        c, began = self.counters, time.monotonic()
        self.flow.train()
        data = self._training_data(c.epoch)
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, c.epoch, 0))
        order = torch.randperm(len(data.y), generator=generator).to(self.home)
        noise = torch.Generator(self.device).manual_seed(_seed(self.settings.seed, c.epoch, 1))
        total, taken = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for i in range(self.steps):
            self._poll()
            loss = self._step(data, order[i * self.batch : (i + 1) * self.batch], noise)
            if loss is None:
                c.skipped, c.bad = c.skipped + 1, c.bad + 1
                if c.bad > MAX_SKIPPED:
                    return self._step_back(last)
            else:
                total, taken, c.bad = total + loss, taken + 1, 0
            c.step += 1
            c.seconds = time.monotonic() - self.began
            self.progress.step(c.epoch + 1, i + 1, self._done())
            if c.seconds >= self.max_seconds:
                break
        train = data.log_det - float(total) / max(taken, 1)
        c.epoch += 1
        evaluation, state = self._evaluate(train, taken * self.batch / (time.monotonic() - began), last)
        on_evaluation(evaluation, state)
        self.progress.evaluated(evaluation)
        return state

    def _step(self, data: Encoded, index: Tensor, noise: torch.Generator) -> Tensor | None:
        """One step on the rows at ``index``; None, and nothing changed, when loss or gradient is not finite."""
        y = data.y[index].to(self.device)
        context = None if data.context is None else data.context[index].to(self.device)
        if self.settings.noise:
            y = y + self.settings.noise * torch.randn(y.shape, generator=noise, dtype=y.dtype, device=y.device)
        loss = -self.flow(y, context).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        if not torch.isfinite(norm + loss.detach()):
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.step()
        self.average.update_parameters(self.flow)
        value: Tensor = loss.detach().double()
        return value

    def _poll(self) -> None:
        if self.stopped():
            raise Interrupted

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
        c, averaged = self.counters, self.average.module
        averaged.eval()
        log_probs = []
        with torch.no_grad():
            chunk, given = rows_at_once(self.codec.features), self.held_out.context
            for i in range(0, len(self.held_out.y), chunk):
                self._poll()
                context = None if given is None else given[i : i + chunk].to(self.device)
                log_probs.append(averaged(self.held_out.y[i : i + chunk].to(self.device), context).double().cpu())
        # A row without any density would make every mean −∞, and no epoch better than another.
        log_prob = torch.nan_to_num(torch.cat(log_probs), nan=NO_DENSITY, neginf=NO_DENSITY)
        held_out = float(log_prob.mean()) + self.held_out.log_det
        average, c.averaged = copy_of(averaged), int(self.average.n_averaged)
        better = held_out > c.best or last is None
        if better:
            c.best, c.best_epoch = held_out, c.epoch
        best = average if better or last is None else last.best
        state = State(copy_of(self.flow), average, best, optimizer_tensors(self.optimizer), Counters(**asdict(c)))
        return Evaluation(c.epoch, c.step, train, held_out, c.best_epoch, self._lr(), c.skipped, rate, c.seconds), state

    def _restore(self, state: State) -> None:
        self.flow.load_state_dict(state.weights)
        self.average.module.load_state_dict(state.average)
        self.average.n_averaged.fill_(state.counters.averaged)
        load_optimizer(self.optimizer, state.optimizer)
        self.counters = Counters(**asdict(state.counters))

    def _step_back(self, last: State) -> State:
        """Return to ``last`` with half the rate. Raises TrainingError when that was done often enough."""
        retreats, skipped, rate, seconds_ = (
            self.counters.retreats + 1, self.counters.skipped, self.counters.rate / 2, self.counters.seconds
        )  # fmt: skip
        if retreats > MAX_RETREATS:
            raise TrainingError(
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

    def _training_data(self, epoch: int) -> Encoded:
        """The training rows for an epoch: new dequantisation noise each time, if any column is discrete."""
        if self.data is None or self.codec.discrete:
            self.data = self._encode(self.rows, epoch)
        return self.data

    def _encode(self, rows: Rows, epoch: int) -> Encoded:
        y = torch.empty(len(rows), self.codec.features, dtype=self.dtype)
        total, chunk = 0.0, 8 * rows_at_once(self.codec.features)
        for start in range(0, len(rows), chunk):
            self._poll()
            raw = rows.raw[start : start + chunk]
            if epoch != HELD_OUT:
                raw = self.codec.augmented(raw, uniforms(self.settings.seed, COINS + epoch, start, len(raw), 1))
            part, log_det = self.codec.encode(raw, uniforms(self.settings.seed, epoch, start, *raw.shape))
            y[start : start + chunk] = part
            total += float(log_det.sum())
        context = None if rows.context is None else rows.context.to(self.home, self.dtype)
        return Encoded(y.to(self.home), context, total / len(rows))


def batch_size(settings: Train, rows: int) -> int:
    """The batch that ``auto`` means for so many rows: a thirty-second part, a power of two between 64 and 512."""
    if settings.batch_size != "auto":
        return min(settings.batch_size, rows)
    part = 1 << round(math.log2(max(rows / 32, 1)))
    return min(rows, max(64, min(512, part)))


def _seed(*words: int) -> int:
    state: list[int] = np.random.SeedSequence(words).generate_state(1, np.uint32).tolist()
    return state[0]
