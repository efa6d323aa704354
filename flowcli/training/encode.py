"""Rows as the flow sees them: places in cells drawn, and values where there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowcli.baseline import WIDER, Baseline
from flowcli.data.codec import Codec, Rows
from flowcli.data.noise import uniforms
from flowcli.training.rows import Part

HELD_OUT = 2**32  # the epoch whose draws the held-out rows keep
COINS, FILLERS = 2**33, 2**35  # added to an epoch for draws that are not its dequantisation noise
FILLINGS = 16  # draws for the missing values of a row


class Encoded(NamedTuple):
    """Rows as the flow sees them: ``y (n, features)``, context, and the mean of the codec's log-determinant. With
    ``log_q (n, k)``, each row is there k times, with other values for its missing ones, of these log-densities."""

    y: Tensor
    context: Tensor | None
    log_det: float
    log_q: Tensor | None = None


class Encoder:
    """Encodes rows for a flow on ``device`` of precision ``dtype``, to be kept at ``home``. All it draws is a function
    of (seed, epoch, row). ``poll`` is called often."""

    def __init__(
        self, codec: Codec, baseline: Baseline, seed: int, device: torch.device, home: torch.device,
        dtype: torch.dtype, poll: Callable[[], None],
    ) -> None:  # fmt: skip
        self.codec, self.baseline, self.seed, self.poll = codec, baseline, seed, poll
        self.device, self.home, self.dtype = device, home, dtype

    def encode(self, parts: Sequence[Part], epoch: int, flow: torch.nn.Module) -> Encoded:
        """Training rows, varied as the recipe asks. ``flow`` is what has been learned so far."""
        n = sum(len(rows) for _, rows in parts)
        y = torch.empty(n, self.codec.features, dtype=self.dtype)
        total, done, chunk = 0.0, 0, 8 * self.codec.rows_at_once
        for start, rows in parts:
            for i in range(0, len(rows), chunk):
                self.poll()
                some, place = rows.take(torch.arange(i, min(i + chunk, len(rows)))), start + i
                raw = self.codec.augmented(some.raw, uniforms(self.seed, COINS + epoch, place, len(some), 1))
                u = uniforms(self.seed, epoch, place, *raw.shape)
                part, log_det = self.codec.encode(raw, u)
                if some.missing is not None:
                    part = self._filled(part, some, u, epoch, place, flow)
                y[done : done + len(some)] = part
                total, done = total + float(log_det.sum()), done + len(some)
        given = [rows.context for _, rows in parts if rows.context is not None]
        context = torch.cat(given).to(self.home, self.dtype) if given else None
        return Encoded(y.to(self.home), context, total / max(n, 1))

    def encode_held_out(self, rows: Rows) -> Encoded:
        """Held-out rows, as they are, with places in their cells that are the same in every epoch. Rows with missing
        values are there with several, from which p(x_O) = E_q[p(x_O, m)/q(m)] is estimated."""
        parts, total, chunk = [], 0.0, 8 * self.codec.rows_at_once
        for i in range(0, len(rows), chunk):
            self.poll()
            raw = rows.raw[i : i + chunk]
            part, log_det = self.codec.encode(raw, uniforms(self.seed, HELD_OUT, i, *raw.shape))
            parts.append(part.to(self.dtype))
            total += float(log_det.sum())
        y, log_det_mean = torch.cat(parts), total / max(len(rows), 1)
        context = None if rows.context is None else rows.context.to(self.home, self.dtype)
        if rows.missing is None:
            return Encoded(y.to(self.home), context, log_det_mean)
        fillings, log_q = [], []
        for k in range(FILLINGS):
            normal = torch.special.ndtri(uniforms(self.seed, HELD_OUT + 2 + k, 0, *y.shape))
            filled, log_density = self.baseline.completed(y.double(), rows.missing, normal, WIDER if k % 2 else 1.0)
            fillings.append(filled.to(self.dtype))
            log_q.append(log_density)
        context = None if context is None else context.repeat_interleave(FILLINGS, 0)
        return Encoded(
            torch.stack(fillings, 1).flatten(0, 1).to(self.home), context, log_det_mean, torch.stack(log_q, 1)
        )

    @torch.no_grad()
    def _filled(self, y: Tensor, rows: Rows, u: Tensor, epoch: int, place: int, flow: torch.nn.Module) -> Tensor:
        """Encoded rows whose missing values are drawn from what the flow has learned, p(m | x_O): each is one of
        several draws from the baseline's q(m | x_O), picked with odds p(x_O, m)/q(m) (sampling–importance resampling,
        Rubin 1987). Of the first epoch, when it has learned nothing, they are the baseline's.

        Learning from them is Monte-Carlo expectation–maximisation of the likelihood of what is there (Wei & Tanner
        1990); from the baseline's draws alone the flow would learn the Gaussian in the gaps.
        """
        assert rows.missing is not None
        if epoch == 0:
            return self.baseline.completed(y, rows.missing, torch.special.ndtri(u))[0]
        out = y.clone()
        holey = torch.nonzero(rows.missing.any(1))[:, 0]
        most = int(rows.missing.sum(1).max())
        coins = uniforms(self.seed, FILLERS + epoch, place, len(y), FILLINGS * most + 1)
        flow.eval()
        for some in holey.split(max(1, self.codec.rows_at_once // FILLINGS)):
            noise = torch.special.ndtri(coins[some, 1:].view(len(some), FILLINGS, most))
            noise[:, 1::2] *= WIDER
            drawn, log_q = self.baseline.draws(y[some], rows.missing[some], noise)
            flat = drawn.reshape(-1, y.shape[1]).to(self.device, self.dtype)
            given = None if rows.context is None else rows.context[some].repeat_interleave(FILLINGS, 0)
            log_p = flow(flat, None if given is None else given.to(self.device, self.dtype)).double().cpu()
            odds = torch.softmax(log_p.view(len(some), FILLINGS).nan_to_num(-1e30, neginf=-1e30) - log_q, 1)
            picked = (odds.cumsum(1) < coins[some, :1]).sum(1).clamp(max=FILLINGS - 1)
            out[some] = drawn[torch.arange(len(some)), picked]
        return out
