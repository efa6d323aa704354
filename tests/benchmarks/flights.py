"""A raw table of mixed columns through the command line, unmodified: can a classifier tell the samples from the rows?

    python -m tests.benchmarks.flights --data DIR --work DIR [--max-time 30m] [--rows N] [--compared N]

DIR of ``--data`` holds ``tables/nycflights13_flights.parquet``: 336,776 flights, 19 columns of dates, delays, texts and
missing values. ``init``, ``fit``, ``sample -n 20000`` and ``score`` run as commands and nobody touches the recipe; a
run that is there and finished is not fitted again. With ``--rows`` only so many random rows are used.

A gradient-boosting classifier, at scikit-learn's defaults, is then told to separate 20,000 rows of the table from the
20,000 drawn ones, on the columns that were drawn: the mean AUC of 5-fold cross-validation, 0.5 where it can only guess.
Beside it: other rows of the table; the table's columns shuffled independently of one another; and zuko's NSF, given the
training time that flowcli had, with columns encoded by hand as a practitioner might: rows with missing values dropped,
text as ordinals from the most frequent level down, the time stamp as hours, all whole numbers dequantised by uniform
noise, standardised, and decoded by rounding down within the range seen. A second AUC leaves out the columns that others
tell, which flowcli's recipe found and NSF was not told of.

For every column: the total variation distance from all rows, exact for text and up to 50 values, else in 50 quantile
bins, a missing value being one more; that of 20,000 rows of the table is the noise. Also the shares of rows with a
valid date, a time stamp that goes with it, times that a clock has, and known carriers, airports and routes. Prints the
tables and writes ``results/flights.json``. Needs the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
import zuko
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.inspection import permutation_importance
from sklearn.model_selection import StratifiedKFold, cross_val_score

from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "flights.json"
TABLE = Path("tables") / "nycflights13_flights.parquet"
COMPARED = 20_000  # rows on each side
EXACT = 50  # values of a column up to which each is a level, and bins beyond
BATCH, RATE = 512, 1e-3  # of NSF
TIMES = ("dep_time", "sched_dep_time", "arr_time", "sched_arr_time")  # 1759 is a minute before 1800
STAMP, ZONE = "time_hour", "America/New_York"


def flowcli(*arguments: object) -> float:
    """Seconds of a command."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "flowcli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def fitted(table: Path, run: Path, work: Path, max_time: str | None) -> dict[str, float]:
    """``init`` and ``fit``, unless done; their seconds."""
    seconds = work / f"{run.name}.seconds.json"
    if not (run / "run.json").exists() or not seconds.exists():
        recipe = work / f"{run.name}.yaml"
        limit = ("--max-time", max_time) if max_time else ()
        found = {"init": flowcli("init", table, "-o", recipe, "--force")}
        found["fit"] = flowcli("fit", recipe, "-o", run, "--force", *limit)
        seconds.write_text(json.dumps(found))
    stored: dict[str, float] = json.loads(seconds.read_text())
    return stored


# -- NSF, by hand --------------------------------------------------------------------------------------------------


def stamps(values: pd.Series[str]) -> pd.Series[float]:
    """Time stamps in hours."""
    return pd.to_datetime(values, utc=True).astype("datetime64[s, UTC]").astype(np.int64).where(values.notna()) / 3600


class ByHand:
    """Whole numbers for every column that varies, and back; fitted to rows without missing values."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.constants = {name: rows[name].iloc[0] for name in rows if rows[name].nunique() == 1}
        self.names = [name for name in rows if name not in self.constants]
        self.levels = {
            name: rows[name].value_counts().index.to_numpy()
            for name in self.names
            if name != STAMP and not pd.api.types.is_numeric_dtype(rows[name])
        }
        whole = self._numbers(rows)
        self.low, self.high = whole.min(0), whole.max(0)
        noisy = whole + 0.5
        self.mean, self.scale = noisy.mean(0), noisy.std(0)

    def _numbers(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        columns = []
        for name in self.names:
            if name in self.levels:
                columns.append(pd.Index(self.levels[name]).get_indexer(rows[name]).astype(np.float64))
            else:
                columns.append((stamps(rows[name]) if name == STAMP else rows[name]).to_numpy(np.float64))
        return np.stack(columns, 1)

    def encode(self, rows: pd.DataFrame) -> torch.Tensor:
        """Standardised whole numbers ``(n, columns)``, without the noise of a cell."""
        return torch.from_numpy((self._numbers(rows) - self.mean) / self.scale).float()

    def decode(self, y: torch.Tensor, like: pd.DataFrame) -> pd.DataFrame:
        """Rows with the columns of ``like``."""
        whole = np.clip(np.floor(y.double().numpy() * self.scale + self.mean), self.low, self.high)
        found: dict[str, Any] = {name: np.full(len(y), value) for name, value in self.constants.items()}
        for name, column in zip(self.names, whole.T, strict=True):
            if name in self.levels:
                found[name] = self.levels[name][column.astype(int)]
            elif name == STAMP:
                found[name] = pd.to_datetime(column * 3600, unit="s").strftime("%Y-%m-%dT%H:%M:%SZ")
            else:
                found[name] = column
        return pd.DataFrame(found)[[*like]]


def nsf_sample(rows: pd.DataFrame, seconds: float, n: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """``n`` rows of zuko's NSF, of the size that ``init`` proposes, after so many seconds of training; and of what."""
    torch.manual_seed(0)
    whole = rows.dropna()
    codec = ByHand(whole)
    y = codec.encode(whole)
    cell = torch.from_numpy(1 / codec.scale).float()
    flow = zuko.flows.NSF(y.shape[1], transforms=5, hidden_features=(128, 128), bins=16)
    optimiser = torch.optim.Adam(flow.parameters(), lr=RATE)
    began, step = time.monotonic(), 0
    while (spent := (time.monotonic() - began) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * spent))
        batch = y[torch.randint(len(y), (BATCH,))]
        loss = -flow().log_prob(batch + torch.rand_like(batch) * cell).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        step += 1
    with torch.no_grad():
        drawn = torch.cat([flow().sample((1_000,)) for _ in range(-(-n // 1_000))])[:n]
    about = {"rows": len(whole), "steps": step, "seconds": seconds, "loss": loss.item()}
    return codec.decode(drawn.nan_to_num(), rows), about


# -- comparison ----------------------------------------------------------------------------------------------------


def features(rows: pd.DataFrame, real: pd.DataFrame) -> pd.DataFrame:
    """What the classifier sees: numbers, time stamps as numbers, text as categories of the real rows."""
    found = {}
    for name in real:
        if name == STAMP:
            found[name] = stamps(rows[name])
        elif pd.api.types.is_numeric_dtype(real[name]):
            found[name] = rows[name].astype(float)
        else:
            found[name] = rows[name].astype(pd.CategoricalDtype(sorted(real[name].dropna().unique())))
    return pd.DataFrame({name: column.reset_index(drop=True) for name, column in found.items()})


def separated(real: pd.DataFrame, other: pd.DataFrame, untold: list[str]) -> dict[str, Any]:
    """The classifier's AUC on all columns and on those not told by others, and what it looks at."""
    x = pd.concat([real, other], ignore_index=True)
    y = np.arange(len(x)) >= len(real)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    classifier = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    found = {
        key: float(cross_val_score(classifier, x[columns], y, cv=folds, scoring="roc_auc").mean())
        for key, columns in (("auc", [*x]), ("auc_untold", untold))
    }
    train, test = next(iter(folds.split(x, y)))
    classifier.fit(x.iloc[train], y[train])
    drop = permutation_importance(classifier, x.iloc[test], y[test], scoring="roc_auc", n_repeats=3, random_state=0)
    top = np.argsort(-drop.importances_mean)[:6]
    return found | {"importance": {x.columns[i]: round(float(drop.importances_mean[i]), 4) for i in top}}


def distances(rows: pd.DataFrame, real: pd.DataFrame) -> dict[str, float]:
    """The total variation distance of each column of two tables of :func:`features`."""
    found = {}
    for name in real:
        pair = real[name], rows[name]
        if not isinstance(real[name].dtype, pd.CategoricalDtype) and real[name].nunique() > EXACT:
            edges = np.unique(real[name].quantile(np.linspace(0, 1, EXACT + 1)[1:-1]))
            pair = tuple(pd.Series(np.searchsorted(edges, s, side="right")).where(s.notna(), -1) for s in pair)
        shares = [series.value_counts(normalize=True, dropna=False) for series in pair]
        shares = [pd.Series({str(key): value for key, value in share.items()}) for share in shares]
        found[name] = float(shares[0].sub(shares[1], fill_value=0).abs().sum() / 2)
    return found


def validity(rows: pd.DataFrame, real: pd.DataFrame) -> dict[str, float]:
    """Shares of the rows that make sense."""
    date = pd.to_datetime(rows[["year", "month", "day"]].astype("Int64"), errors="coerce")
    routes = set(zip(real["origin"], real["dest"], strict=True))
    shares = {
        "date_exists": date.notna(),
        **{f"{name}_known": rows[name].isin(real[name].unique()) for name in ("carrier", "origin", "dest")},
        "clock_times_exist": (rows[[*TIMES]].isna() | (rows[[*TIMES]] % 100 < 60)).all(axis=1),
        "route_known": pd.Series([route in routes for route in zip(rows["origin"], rows["dest"], strict=True)]),
    }
    if STAMP in rows:
        local = date + pd.to_timedelta(rows["hour"].astype(float), unit="h")
        stamp = local.dt.tz_localize(ZONE, ambiguous=np.ones(len(rows), bool), nonexistent="shift_forward")
        shares["time_hour_goes_with_it"] = stamp == pd.to_datetime(rows[STAMP], utc=True)
    return {name: float(share.mean()) for name, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--max-time", help="of the fit, where it is not to be the recipe's own")
    parser.add_argument("--nsf-seconds", type=float, help="of NSF's training, where not as long as the fit's")
    parser.add_argument("--rows", type=int, help="so many random rows, to try it out; results are not written")
    parser.add_argument("--compared", type=int, default=COMPARED, help="rows on each side; results are not written")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    table = options.data / TABLE
    if options.rows:
        some = pq.read_table(table)
        chosen = np.sort(np.random.default_rng(0).choice(some.num_rows, options.rows, replace=False))
        table = work / f"flights-{options.rows}.parquet"
        pq.write_table(some.take(pa.array(chosen)), table)
    run = work / f"flights-{options.max_time or 'own'}-{options.rows or 'all'}"
    seconds = fitted(table, run, work, options.max_time)
    drawn_file, some_file, scores_file = (work / f"{run.name}.{what}.parquet" for what in ("drawn", "some", "scores"))
    seconds["sample"] = flowcli("sample", run, "-n", options.compared, "-o", drawn_file, "--seed", 1, "--force")

    whole, drawn = pd.read_parquet(table), pd.read_parquet(drawn_file)
    order = np.random.default_rng(1).permutation(len(whole))
    n = min(options.compared, len(whole) // 2)
    real, other = (whole.iloc[order[start : start + n]].reset_index(drop=True) for start in (0, n))
    pq.write_table(pq.read_table(table).take(pa.array(order[:n])), some_file)
    seconds["score"] = flowcli("score", run, some_file, "-o", scores_file, "--force")
    scores = pd.read_parquet(scores_file)
    manifest = json.loads((run / "run.json").read_text())
    columns = yaml.safe_load((run / "recipe.yaml").read_text())["data"]["columns"]
    real, other, everything = real[[*drawn]], other[[*drawn]], whole[[*drawn]]
    untold = [name for name in drawn if not columns.get(name, {}).get("by")]
    nsf, nsf_about = nsf_sample(everything, options.nsf_seconds or manifest["seconds"]["training"], n)
    rng = np.random.default_rng(2)
    shuffled = other.apply(lambda column: column.to_numpy()[rng.permutation(len(column))])
    contenders = {"flowcli": drawn[:n], "NSF by hand": nsf, "other rows": other, "columns shuffled": shuffled}

    seen = {name: features(rows, everything) for name, rows in contenders.items()}
    first, all_rows = features(real, everything), features(everything, everything)
    separation = {name: separated(first, x, untold) for name, x in seen.items()}
    variation = {name: distances(x, all_rows) for name, x in seen.items() if name != "columns shuffled"}
    valid = {name: validity(rows, everything) for name, rows in contenders.items()}

    print(f"seconds: {', '.join(f'{name} {value:.0f}' for name, value in seconds.items())}; NSF "
          f"{nsf_about['seconds']:.0f}, {nsf_about['steps']:,} steps")  # fmt: skip
    print(f"{len(scores):,} random rows: log_prob {scores['log_prob'].mean():.3f} nats; held out "
          f"{manifest['metrics']['held_out_log_prob']:.3f}; {scores['status'].value_counts().to_dict()}")  # fmt: skip
    print(f"\n{f'AUC against {n:,} rows':<26}{'all columns':>12}{'not told':>10}  what tells (fall of AUC)")
    for name, found in separation.items():
        tells = ", ".join(f"{column} {fall:.3f}" for column, fall in found["importance"].items())
        print(f"{name:<26}{found['auc']:>12.4f}{found['auc_untold']:>10.4f}  {tells}")
    print(f"\n{'total variation':<26}" + "".join(f"{name:>14}" for name in variation))
    for column in drawn:
        print(f"{column:<26}" + "".join(f"{found[column]:>14.4f}" for found in variation.values()))
    print(f"{'mean':<26}" + "".join(f"{np.mean([*found.values()]):>14.4f}" for found in variation.values()))
    print(f"\n{'share of rows':<26}" + "".join(f"{name:>18}" for name in valid))
    for what in valid["flowcli"]:
        print(f"{what:<26}" + "".join(f"{found[what]:>18.4f}" for found in valid.values()))
    result = {
        "machine": machine() | {"threads": manifest["threads"]},
        "max_time": options.max_time,
        "seconds": seconds,
        "metrics": manifest["metrics"],
        "training_seconds": manifest["seconds"]["training"],
        "scores": {
            "mean_log_prob": float(scores["log_prob"].mean()),
            "status": scores["status"].value_counts().to_dict(),
        },
        "columns": [*drawn],
        "not_drawn": [name for name in whole if name not in drawn],
        "told": [name for name in drawn if name not in untold],
        "nsf": nsf_about,
        "separation": separation,
        "total_variation": variation,
        "valid": valid,
    }
    if not options.rows and options.compared == COMPARED:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
