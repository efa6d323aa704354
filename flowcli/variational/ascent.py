"""Fitting a flow to a log-density: path derivatives of both divergences, and a rate that falls when the ELBO rests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from flowcli.errors import TrainingError
from flowcli.flows.flow import Flow
from flowcli.variational.target import LogDensity
from flowcli.variational.weights import importance_draws, truncated

STEPS = 100  # an epoch
WARM_UP = 50
RATES = (1.0, 1 / 7, 1 / 50)  # that the learning rate is multiplied with, one after the other
MOVES = 1e-2  # nats: a smaller rise of the ELBO is none
POOL = 4096  # draws that maximum likelihood learns from, and
FRESH = 2  # epochs after which they are drawn again


class Stopped(Exception):
    """The user asked for an end."""


@dataclass(frozen=True)
class Evaluation:
    """One line of ``metrics.jsonl``. The ELBO is the mean over the epoch's draws, in nats."""

    epoch: int
    step: int
    elbo: float
    elbo_error: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How long and how fast. ``forward`` is the share of the forward divergence; ``seconds`` a limit."""

    draws: int
    lr: float
    clip: float
    patience: int
    epochs: int
    forward: float = 0.5
    seconds: float = math.inf


def coefficients(log_weights: Tensor, forward: float) -> Tensor:
    """What each draw's path derivative ∂ log w/∂x · ∂x/∂φ counts, ``(n,)``: 1/n ascends the ELBO, that is KL(q‖p)
    (Roeder et al. 2017, sticking the landing); w̃(1 − w̃), with the normalised weights w̃, descends KL(p‖q), which keeps
    the tails and the modes (Tucker et al. 2019, reweighted wake-sleep). Both have no variance where q = p.

    Draws at which the target is not finite count nothing.
    """
    n = len(log_weights)
    reverse = (log_weights > -torch.inf).double() / n
    if forward == 0:
        return reverse
    share = truncated(log_weights)
    return (1 - forward) * reverse + forward * share * (1 - share)


class Ascent:
    """A flow on its way to a target. ``pool`` are draws ``(m, d)`` that hold all of a target's peaks: where there are
    several, the flow also learns by maximum likelihood from such, drawn anew from itself with importance weights.
    Path derivatives move mass between distant peaks hardly at all; likelihood does."""

    def __init__(
        self, flow: Flow, density: LogDensity, plan: Plan, generator: torch.Generator, pool: Tensor | None = None
    ) -> None:
        self.flow, self.density, self.plan, self.generator, self.pool = flow, density, plan, generator, pool
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.optimizer = Adam(self.parameters, lr=plan.lr, betas=(0.9, 0.99))
        self.evaluations: list[Evaluation] = []
        self.began = time.monotonic()
        self.phase = self.best_epoch = self.steps = 0
        self.best = -math.inf

    def run(
        self, hear: Callable[[Evaluation], None] = lambda _: None, stopped: Callable[[], bool] = lambda: False
    ) -> bool:
        """Ascend until the ELBO rests at the lowest rate; whether it did so before the plan's end.

        Raises TrainingError when the target is finite at none of an epoch's draws, Stopped when ``stopped`` says so.
        """
        for epoch in range(1, self.plan.epochs + 1):
            if self.pool is not None and epoch % FRESH == 0:
                self.pool = self._fresh_pool()
            values = []
            for _ in range(STEPS):
                if stopped():
                    raise Stopped
                values.append(self._step())
            log_weights = torch.cat(values)
            finite = log_weights[log_weights > -torch.inf]
            if len(finite) < 2:
                raise TrainingError("the target is finite at none of the flow's draws; it may need another start.")
            error = float(finite.std()) / math.sqrt(len(finite))
            rate = self.optimizer.param_groups[0]["lr"]
            done = Evaluation(epoch, self.steps, float(finite.mean()), error, rate, time.monotonic() - self.began)
            self.evaluations.append(done)
            hear(done)
            if self._rests(done):
                self.phase += 1
                self.best_epoch = epoch
            if self.phase == len(RATES):
                return True
        return False

    def _rests(self, now: Evaluation) -> bool:
        """Whether to go on to the next rate: the ELBO has not risen for ``patience`` epochs, or this one's share of
        the plan is used up."""
        if now.elbo > self.best + max(MOVES, 2 * now.elbo_error):
            self.best, self.best_epoch = now.elbo, now.epoch
        used = max(now.epoch / self.plan.epochs, now.seconds / self.plan.seconds)
        return now.epoch - self.best_epoch >= self.plan.patience or used >= (self.phase + 1) / len(RATES)

    def _step(self) -> Tensor:
        """One step; the draws' log-weights ``(n,)``."""
        plan, flow = self.plan, self.flow
        x, _ = flow.bijection.inverse(flow.base.sample(plan.draws, self.generator))
        leaf = x.detach().requires_grad_()
        log_q = flow.log_prob(leaf)
        (slope_q,) = torch.autograd.grad(log_q.sum(), leaf)
        log_p, slope_p = self.density.slope(leaf.detach().double())
        log_weights = log_p - log_q.detach().double()
        count = coefficients(log_weights, plan.forward)
        # Through x alone: the gradient of Σ c·(log p(x) − log q(x)) at fixed parameters of q.
        force = count[:, None] * (slope_p - slope_q.double())
        loss = -(force.to(x.dtype) * x).sum()
        if self.pool is not None:
            rows = torch.randint(len(self.pool), (plan.draws,), generator=self.generator)
            loss = loss - flow.log_prob(self.pool[rows].to(x.dtype)).mean()
        self._descend(loss)
        return log_weights

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        size = torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr * RATES[self.phase] * min(1.0, self.steps / WARM_UP)
        if torch.isfinite(size):
            self.optimizer.step()

    def learn(self, steps: int) -> None:
        """Begin by maximum likelihood from the pool."""
        assert self.pool is not None
        for _ in range(steps):
            rows = torch.randint(len(self.pool), (self.plan.draws,), generator=self.generator)
            self._descend(-self.flow.log_prob(self.pool[rows].to(self.flow.base.anchor.dtype)).mean())

    def _fresh_pool(self) -> Tensor:
        draws = importance_draws(self.flow, self.density, POOL, self.generator)
        picked = torch.multinomial(truncated(draws.log_weights), POOL, replacement=True, generator=self.generator)
        return draws.u[picked]
