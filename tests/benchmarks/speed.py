"""Training steps, densities and draws of each flow, timed against its peers and against the machine.

    python -m tests.benchmarks.speed [--quick] [--only maf] [--seconds 3] [--threads 2]

Each row of the table is a flow of one shape. All contenders are built in one process with the same depth, width,
activation, bins and batch (``peers.py``), and their calls alternate; figures are medians, in rows a second. A training
step is forward, backward and a fused Adam; ours also clips the gradient, decays the weights and averages them, as
``fit`` does. It is timed as written and, but with ``--quick``, compiled (``train.compile``), in the threads that
``fit`` takes: one for a narrow flow. ``log_prob`` and ``sample`` take 4096 rows (256 with ``--quick``) without
gradients. Each contender's turn is of as many calls as 20 ms hold, three at least of those under half a second, one
after the other as a fit makes them; one before them, which finds in the caches what the others left there, is not
timed. The ratio is to the fastest peer. By themselves peers take ReLU, which costs a fraction of the SiLU that makes
our densities smooth; so, but with ``--quick``, steps and densities have a second ratio, to the fastest of the peers'
flows with ReLU, which are another architecture.

The floor is the time of the matrix products that the weights which are not masked need (for a training step three
times those of a density, but for the gradient of the first layer's input), at the rate that plain ``torch.matmul`` of
``(batch, hidden)`` by ``(hidden, hidden)`` reaches among the same rounds. Where hidden layers are small, what is
computed beside the products takes most of the time, and the share of the floor says so.

Before anything is timed, each contender, its weights moved off their start, is checked: its ``log_prob`` in float64
against the Gaussian and the determinant of autograd's Jacobian, and our draws against the density of where they came
from. Prints the table and writes ``results/speed.json``. Needs the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowcli.flows.flow import Flow
from flowcli.flows.nets import MaskedLinear
from flowcli.flows.registry import build
from flowcli.training.compiled import compiled
from flowcli.training.device import narrow, threads
from flowcli.training.state import Average
from flowcli.training.vector import as_vector, with_gradient
from tests.benchmarks.machine import machine
from tests.benchmarks.peers import BINS, Contender, Shape, peers

RESULTS = Path(__file__).parent / "results" / "speed.json"
SHAPES = (
    Shape("maf", 6, 64, 5, 512),
    Shape("maf", 43, 512, 5, 512),
    Shape("maf", 63, 512, 10, 256),
    Shape("realnvp", 6, 64, 8, 512),
    Shape("realnvp", 43, 512, 8, 512),
    Shape("maf spline", 6, 64, 5, 512),
    Shape("maf spline", 43, 512, 5, 512),
    Shape("realnvp spline", 6, 64, 8, 512),
    Shape("realnvp spline", 43, 512, 8, 512),
    Shape("planar", 6, 0, 64, 512),
    Shape("radial", 6, 0, 64, 512),
)
WIDTHS = tuple(Shape("maf", d, 256, 5, 512) for d in (8, 32, 128, 512))  # how cost grows with columns
OURS = ("flowcli", "compiled")
RELU = " ReLU"
ROWS, FEW = 4096, 256  # of a density and of draws; with --quick
RATIOS = [f"{name} {ratio}" for ratio in ("ratio", "relu_ratio") for name in OURS]
CLIP = 5.0  # of the gradient, as `fit` has it
FEWEST, MOST = 3, 101  # rounds; with --quick one is enough of what is slow
WIDEST = 64  # columns up to which peers, which take a pass for each, are let draw
TURN, CALLS = 0.02, 3  # seconds of a turn, and the calls that it has at least
SLOW = 0.5  # seconds of a call that is a turn by itself
CHECKED = 4  # rows


def ours(shape: Shape) -> tuple[Contender, Flow]:
    """flowcli's flow of that shape, without the whitening layer that peers do not have."""
    type_, _, spline = shape.flow.partition(" ")
    options: dict[str, Any] = {"layers": shape.layers, "hidden": [shape.hidden] * 2 if shape.hidden else [64]}
    if type_ in ("maf", "realnvp"):
        options |= {"transform": "spline" if spline else "affine", "bins": BINS}
        options |= {"order": "reverse", "direction": "maf"} if type_ == "maf" else {"mixing": "none", "levels": "auto"}
    flow = build(type_, shape.features, base="gaussian", components=1, whiten=False, **options).float()
    return Contender("flowcli", flow, flow, lambda x: flow.bijection(x)[0], flow.sample), flow


def moved(module: nn.Module) -> nn.Module:
    """With every weight off its start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, MaskedLinear):
                part.remask()
    return module


def check(contender: Contender, features: int) -> float:
    """The largest error of a log-density in float64 against autograd's Jacobian, and of our draws' against theirs."""
    contender.module.double().eval()
    x = torch.randn(CHECKED, features, dtype=torch.float64, requires_grad=True)
    z = contender.latent(x)
    jacobian = torch.stack([torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in z.unbind(1)], 1)
    # One by one: of a batch of matrices of 200 rows or more, torch 2.13 finds wrong determinants in two threads.
    log_det = torch.stack([torch.linalg.slogdet(one).logabsdet for one in jacobian])
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum(1) + log_det
    errors = [(contender.log_prob(x) - expected).abs().max()]
    if isinstance(contender.module, Flow):
        z = torch.randn(64, features, dtype=torch.float64)
        drawn, log_det = contender.module.bijection.inverse(z)
        errors.append((contender.log_prob(drawn) - (contender.module.base.log_prob(z) - log_det)).abs().max())
    contender.module.float()
    return max(float(error.detach()) for error in errors)


def step_of(contender: Contender, x: Tensor, compile: bool = False) -> Callable[[], Any]:
    """A training step of ``fit``, compiled as it is after 10,000 of them or not; or a peer's plain one."""
    if not isinstance(contender.module, Flow):
        adam = torch.optim.Adam(contender.module.parameters(), lr=1e-5, fused=True)

        def plain() -> None:
            loss = -contender.log_prob(x).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()

        return plain
    flow, vector = contender.module, as_vector(contender.module)
    own = with_gradient(flow, vector)
    optimizer = torch.optim.AdamW([vector], lr=1e-5, weight_decay=1e-2, fused=True)
    average = Average(flow, vector, 0.999)

    def uncompiled(x: Tensor, _: None) -> tuple[Tensor, Tensor]:
        loss = -flow(x).mean()
        own.zero_()
        loss.backward()
        return loss, own

    loss_and_gradient = compiled(flow, vector, x, None) if compile else uncompiled

    def step() -> None:
        gradient = loss_and_gradient(x, None)[1]
        norm = float(gradient.norm())
        if norm > CLIP:
            gradient.mul_(CLIP / norm)
        vector.grad = gradient
        optimizer.step()
        average.update()

    return step


def weights(flow: Flow) -> tuple[int, int]:
    """Products of a row with weights that are not masked; those of them with rows that need no gradient."""
    masked = [layer for layer in flow.modules() if isinstance(layer, MaskedLinear)]
    plain = [p for p in flow.parameters() if p.ndim == 2]
    kept = [int(layer.mask.sum()) for layer in masked] or [p.numel() for p in plain]
    return sum(kept), kept[0]


def interleaved(
    calls: dict[str, Callable[[], Any]], seconds: float, alone: Sequence[str] = (), fewest: int = FEWEST
) -> dict[str, float]:
    """Median seconds of each, in rounds that alternate between them; of those ``alone``, in one thread."""

    def turn(name: str, times: int) -> float:
        with threads(1 if name in alone else torch.get_num_threads()):
            return timed(calls[name], times)

    turns = {}
    for name in calls:
        once = turn(name, 1)
        if once <= SLOW:
            once = min(once, turn(name, 1))
        turns[name] = 1 if once > SLOW else max(CALLS, round(TURN / once))
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    while len(next(iter(times.values()))) < fewest or (
        time.perf_counter() - began < seconds * len(calls) and len(next(iter(times.values()))) < MOST
    ):
        for name in calls:
            if turns[name] > 1:
                turn(name, 1)
            times[name].append(turn(name, turns[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def timed(call: Callable[[], Any], times: int) -> float:
    """Seconds of a call, of so many."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def measure(shape: Shape, seconds: float, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    mine, flow = ours(shape)
    contenders = [mine, *peers(shape)]
    others = peers(shape, "relu") if shape.hidden and not quick else ()
    relu = [c._replace(library=c.library + RELU) for c in others]
    errors = {}
    for contender in [*contenders, *relu]:
        moved(contender.module)
        errors[contender.library] = check(contender, shape.features)
        assert errors[contender.library] < 1e-6, (shape, contender.library, errors)
    rows = FEW if quick else ROWS
    x, many = torch.randn(shape.batch, shape.features), torch.randn(rows, shape.features)
    side = max(shape.hidden, 1)
    w = torch.randn(side, side)

    def matmul(n: int) -> Callable[[], Any]:
        a = torch.randn(n, side)
        return lambda: [torch.matmul(a, w) for _ in range(4)]

    without = torch.no_grad()
    alone = OURS if narrow(flow, shape.batch) else ()
    with threads(1 if alone else torch.get_num_threads()):
        training = {c.library: step_of(c, x) for c in [*contenders, *relu]}
        if not quick:
            training["compiled"] = step_of(mine._replace(module=moved(ours(shape)[1])), x, compile=True)
    density = {c.library: without(lambda c=c: c.log_prob(many)) for c in [*contenders, *relu]}
    drawing = contenders if shape.features <= WIDEST else [mine]
    draws = {c.library: without(lambda c=c: c.sample(rows)) for c in drawing if c.sample}
    out: dict[str, Any] = {**shape._asdict(), "errors": errors}
    kept, first = weights(flow)
    for what, calls, n, products in (
        ("training step", training, shape.batch, 3 * kept - first),
        ("log_prob", density, rows, kept),
        ("sample", draws, rows, kept),
    ):
        one_thread = alone if calls is training else ()
        found = interleaved({**calls, "matmul": matmul(n)}, seconds, one_thread, 1 if quick else FEWEST)
        floor = found.pop("matmul") / (4 * side**2) * products
        out[what] = {
            "rows_per_second": {name: n / t for name, t in found.items()},
            "of_floor": floor / found["flowcli"] if shape.hidden else None,
        }
        for key, rivals in (("ratio", [c.library for c in contenders[1:]]), ("relu_ratio", [c.library for c in relu])):
            best = min((found[name] for name in rivals if name in found), default=None)
            out[what] |= {f"{name} {key}": best / found[name] for name in OURS if best and name in found}
    out["sample"]["of_log_prob"] = (
        out["log_prob"]["rows_per_second"]["flowcli"] / out["sample"]["rows_per_second"]["flowcli"]
    )
    return out


def line(r: dict[str, Any], what: str) -> str:
    shape = f"{r['flow']:<15}{r['features']:>4}{r['hidden']:>5}{r['layers']:>4}{r['batch']:>5}"
    speeds = r[what]["rows_per_second"]
    cells = "".join(
        f"{speeds[name]:>12,.0f}" if name in speeds else f"{'':>12}" for name in (*OURS, "zuko", "nflows", "normflows")
    )
    ratio = "".join(f"{r[what][key]:>9.2f}" if key in r[what] else f"{'':>9}" for key in RATIOS)
    floor = f"{r[what]['of_floor']:>7.0%}" if r[what]["of_floor"] else f"{'':>7}"
    times = f"{r[what]['of_log_prob']:>7.2f}" if "of_log_prob" in r[what] else ""
    return f"{shape}  {what:<14}{cells}{ratio}{floor}{times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="under two minutes, of fewer rows; results are not written"
    )
    parser.add_argument("--only", help="flows whose name starts so; results are not written")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender and figure")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bytes(31 << 20)  # glibc keeps freed memory from here on, for all, as the command line has it do
    print(
        f"{'flow':<15}{'D':>4}{'hid':>5}{'lay':>4}{'bat':>5}  {'rows a second':<14}{'flowcli':>12}{'compiled':>12}"
        f"{'zuko':>12}{'nflows':>12}{'normflows':>12}{'ratio':>9}{'compiled':>9}{'/ReLU':>9}{'compiled':>9}"
        f"{'floor':>7}  /log_prob"
    )
    results = []
    for shape in (*SHAPES, *(() if options.quick else WIDTHS)):
        if not shape.flow.startswith(options.only or ""):
            continue
        results.append(measure(shape, 0.15 if options.quick else options.seconds, options.quick))
        for what in ("training step", "log_prob", "sample"):
            print(line(results[-1], what), flush=True)
    if not options.quick and not options.only:
        about = machine() | {"threads": options.threads, "torch": torch.__version__}
        RESULTS.write_text(json.dumps({"machine": about, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
