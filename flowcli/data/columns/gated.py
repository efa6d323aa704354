"""Columns that are partly discrete: spikes at single values, and values that are not there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from flowcli.data.columns.column import (
    Cells,
    Codes,
    ColumnCodec,
    Floats,
    alike,
    arrow_type,
    is_number,
    placed,
    require,
    require_counts,
)
from flowcli.data.columns.integer import Integer
from flowcli.data.columns.moment import Moment
from flowcli.data.columns.real import Real
from flowcli.data.status import MISSING, OK

FEW = 8  # atoms up to which their order says nothing


@dataclass(frozen=True)
class Gated(ColumnCodec):
    """A gate and a value: the gate is a discrete number that says whether there is a value of the continuous kind, or
    the column is at one of its ``atoms``, or, with ``gaps``, is missing.

    p(x) is then a probability at an atom, and P(gate open)·p(x | open) elsewhere; the likelihood stays finite however
    many rows are at one value. Behind a closed gate the flow's number is drawn from a Student-t, y = Q(u) with
    log|dy/du| = −log q(y): averaged over u, exp(log_prob) integrates the number out, whatever the flow makes of it.
    The tails of q are as heavy as a flow's, lest the average over few places miss what it has there.
    """

    value: Real | Integer | Moment
    atoms: tuple[int | float, ...]
    gaps: bool
    counts: tuple[int, ...]  # open, at each atom, missing

    kind: ClassVar[str] = "gated"
    points: ClassVar[int] = 32

    def check(self) -> None:
        require(len(self.counts) == 1 + len(self.atoms) + self.gaps, "a count for every gate")
        require_counts(*self.counts)
        require(len(set(self.atoms)) == len(self.atoms) and len(self.counts) > 1, "its atoms are different values")
        pa.array(self.atoms, arrow_type(self.arrow_type) if self.atoms else None)
        require(self.value.name == self.name and self.value.width == 1 and self.value.continuous, "it gates one number")
        self.value.check()

    def placeless(self, raw: Tensor) -> Tensor:
        return (raw[:, 0] == 0) & self.value.placeless(raw[:, 1:])

    @property
    def largest(self) -> int:
        return self.value.largest

    @cached_property
    def cells(self) -> Cells:
        smoothed = torch.tensor([n + 1 for n in self.counts], dtype=torch.float64)
        if len(self.atoms) <= FEW:
            return Cells(smoothed / smoothed.sum(), None)
        scaled = torch.zeros(len(self.counts), dtype=torch.float64)
        atoms = torch.tensor(self.atoms, dtype=torch.float64)
        scaled[1 : len(atoms) + 1] = (atoms - atoms.mean()) / atoms.std(correction=0).clamp(min=1e-300)
        return Cells(smoothed / smoothed.sum(), scaled)

    def read(self, values: pa.Array) -> tuple[Floats, Codes]:
        if pa.types.is_floating(own := arrow_type(self.arrow_type)) and is_number(values.type):
            values = values.cast(own, safe=False)  # 0.1 is another number in single precision
        raw, status = self.value.read(values)
        gate = np.zeros(len(raw))
        for i, atom in enumerate(self.atoms, 1):
            gate[np.asarray(pc.equal(*alike(values, pa.array([atom] * len(values), own))).fill_null(False))] = i
        if self.gaps:
            gate[status == MISSING] = len(self.counts) - 1
        status = np.where(gate > 0, np.int8(OK), status)
        return np.stack([gate, raw[:, 0]], 1), status

    def encode(self, raw: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.value.encode(raw[:, 1:], u[:, 1:])
        filler, log_density = student_t4(u[:, 1:])
        closed = raw[:, 0] > 0
        y = torch.where(closed[:, None], filler, y)
        log_slope = torch.where(closed, -log_density[:, 0], log_slope)
        return torch.cat([placed(raw[:, :1], u[:, :1]), y], 1), log_slope

    def decode(self, y: Tensor) -> Tensor:
        gate = y[:, :1].floor().clamp(0, len(self.counts) - 1)
        return torch.cat([gate, self.value.decode(y[:, 1:])], 1)

    def write(self, raw: Floats) -> pa.Array:
        gate = raw[:, 0].astype(np.int64)
        usual = self.value.usual()[0]
        values = self.value.write(np.where(gate == 0, raw[:, 1], usual)[:, None])
        for i, atom in enumerate(self.atoms, 1):
            values = pc.if_else(pa.array(gate == i), pa.scalar(atom, values.type), values)
        if self.gaps:
            values = pc.if_else(pa.array(gate == len(self.counts) - 1), pa.scalar(None, values.type), values)
        return values

    def usual(self) -> Floats:
        return np.array([float(np.argmax(self.counts)), self.value.usual()[0]])


def student_t4(u: Tensor) -> tuple[Tensor, Tensor]:
    """The quantile of Student's t with 4 degrees of freedom at ``u``, and the log-density there (Shaw 2006, section 2:
    with α = 4u(1−u), Q = ±2·√(cos(arccos(√α)/3)/√α − 1))."""
    root = (4 * u * (1 - u)).sqrt()
    y = 2 * (torch.cos(torch.arccos(root.clamp(max=1)) / 3) / root - 1).clamp(min=0).sqrt()
    return torch.where(u < 0.5, -y, y), math.log(3 / 8) - 2.5 * torch.log1p(y.square() / 4)
