"""The command line as a user has it: real processes, stdout and stderr apart, exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from command import ENVIRONMENT, flowcli, succeed

import flowcli as package

FAST = ("-s", "flow.layers=2", "-s", "flow.hidden=[16]", "-s", "train.epochs=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table in every format and a run fitted to it."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    n = 400
    x = rng.standard_normal(n)
    frame = pd.DataFrame(
        {
            "id": np.arange(n),
            "x": 100 + 5 * x,
            "k": rng.poisson(np.exp(x)),
            "site": rng.choice(["a", 'b "é,', "ü"], n),
            "odd": (np.arange(n) % 10 == 0).astype(int),
        }
    )
    frame.to_parquet(folder / "t.parquet", index=False)
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.tsv", index=False, sep="\t")
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    frame.to_feather(folder / "t.arrow", compression="uncompressed")
    out = succeed("fit", "maf-affine", "t.parquet", "-o", "run", "-s", "data.exclude=[id, odd]", *FAST, cwd=folder)
    assert out == "run\n"
    return folder


# -- start-up and help ---------------------------------------------------------------------------------------------


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom flowcli.cli import main\nsys.argv = ['flowcli', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stderr.strip() == "[]"
    assert "fit" in done.stdout


@pytest.mark.parametrize(
    "command",
    ["init", "fit", "score", "sample", "evaluate", "predict", "compare", "inspect", "report", "validate", "recipe"],
)
def test_every_command_explains_itself(command: str) -> None:
    for flag in ("-h", "--help"):
        assert "Usage: flowcli" in succeed(command, flag)


def test_version() -> None:
    assert succeed("--version") == f"flowcli {package.__version__}\n"


def test_recipes_are_listed_shown_and_copied(tmp_path: Path) -> None:
    names = [entry["name"] for entry in json.loads(succeed("recipe", "list", "--json"))]
    assert [line.split()[0] for line in succeed("recipe", "list").splitlines()] == names
    assert "type: maf" in succeed("recipe", "show", "maf-spline")
    assert succeed("recipe", "copy", "maf-spline", cwd=tmp_path) == "maf-spline.yaml\n"
    assert succeed("validate", "maf-spline.yaml", cwd=tmp_path).endswith(": ok\n")
    assert json.loads(succeed("recipe", "schema"))["properties"]["flow"]
    assert flowcli("recipe", "copy", "maf-spline", cwd=tmp_path).returncode == 2


# -- the way of a row ----------------------------------------------------------------------------------------------


def test_the_run_folder(folder: Path) -> None:
    run = folder / "run"
    assert {p.name for p in run.iterdir()} == {
        "recipe.yaml", "run.json", "metrics.jsonl", "model.safetensors", "resume-a.safetensors",
        "resume-b.safetensors", "resume.json",
    }  # fmt: skip
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["data"][0]["bytes"] == (folder / "t.parquet").stat().st_size
    assert manifest["split"] == {"train": 360, "held_out": 40}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert "type: integer" in (run / "recipe.yaml").read_text()
    mode = (run / "model.safetensors").stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask
    assert succeed("validate", run / "recipe.yaml").endswith(": ok\n")


def test_score_writes_a_row_for_every_row_in_every_format(folder: Path) -> None:
    tables = {}
    for format in ("parquet", "csv", "tsv", "jsonl", "arrow"):
        out = folder / f"scores-from-{format}.parquet"
        succeed("score", "run", f"t.{format}", "-o", out, "--keep-all", "--alpha", "0.1", cwd=folder)
        tables[format] = pd.read_parquet(out)
    first = tables["parquet"]
    assert list(first) == [
        "row_id", "source", "id", "x", "k", "site", "odd",
        "log_prob", "score", "p_value", "is_anomaly", "status", "log_prob_error",
    ]  # fmt: skip
    assert first["row_id"].tolist() == first["id"].tolist() == list(range(400))
    assert (first["score"] == -first["log_prob"]).all()
    assert (first["is_anomaly"] == (first["p_value"] <= 0.1)).all()
    assert (first["status"] == "ok").all()
    assert first["log_prob_error"].isna().all()  # no estimate: nothing is missing
    for table in tables.values():
        assert np.allclose(table["log_prob"], first["log_prob"], atol=1e-6)
        assert table["site"].tolist() == first["site"].tolist()


def test_outputs_agree_across_formats(folder: Path) -> None:
    texts = {}
    for format in ("csv", "tsv", "jsonl"):
        texts[format] = succeed("score", "run", "t.csv", "--format", format, cwd=folder, stdin=None)
    csv = pd.read_csv(io.StringIO(texts["csv"]))
    assert len(csv) == 400
    assert np.allclose(pd.read_csv(io.StringIO(texts["tsv"]), sep="\t")["log_prob"], csv["log_prob"])
    assert np.allclose(pd.read_json(io.StringIO(texts["jsonl"]), lines=True)["log_prob"], csv["log_prob"])
    succeed("score", "run", "t.csv", "-o", "scores.arrow", cwd=folder)
    with pyarrow.ipc.open_file(folder / "scores.arrow") as reader:
        assert np.allclose(reader.read_all()["log_prob"].to_numpy(), csv["log_prob"])


@pytest.mark.parametrize("format", ["parquet", "csv", "tsv", "jsonl", "arrow"])
def test_standard_input_in_every_format(folder: Path, format: str) -> None:
    content = (folder / f"t.{format}").read_bytes()
    if format == "arrow":  # the file format needs seeking; a pipe carries the stream format
        table = pd.read_feather(folder / "t.arrow")
        sink = io.BytesIO()
        arrow = pq.read_table(folder / "t.parquet")
        with pyarrow.ipc.new_stream(sink, arrow.schema) as writer:
            writer.write_table(arrow)
        assert len(table) == arrow.num_rows
        content = sink.getvalue()
    out = succeed("score", "run", "-", "--format", format, "-o", "-" if format == "csv" else "in.csv", "--force",
                  cwd=folder, stdin=content)  # fmt: skip
    scores = pd.read_csv(io.StringIO(out) if format == "csv" else folder / "in.csv")
    assert len(scores) == 400
    assert set(scores["source"]) == {"-"}


def test_mean_of_score_is_evaluates(folder: Path) -> None:
    scores = pd.read_csv(io.StringIO(succeed("score", "run", "t.parquet", cwd=folder)))
    found = json.loads(succeed("evaluate", "run", "t.parquet", "--label", "odd", "--json", cwd=folder))
    assert found["rows"] == found["rows_in_mean"] == 400
    assert scores["log_prob"].mean() == pytest.approx(found["log_prob"], abs=1e-5)
    assert found["bits_per_dim"] == pytest.approx(-found["log_prob"] / 3 / np.log(2))
    assert 0 <= found["auroc"] <= 1
    text = succeed("evaluate", "run", "t.parquet", cwd=folder)
    assert f"{found['log_prob']:.4f} ± {found['log_prob_error']:.4f} nats a row" in text


def test_rows_that_cannot_be_scored_are_still_written(folder: Path) -> None:
    rows = 'x,k,site\n100,1,a\n,1,a\ninf,1,a\n100,1,"new, place"\n1e300,1,a\n100,,ü\n'
    out = succeed("score", "run", "-", "--alpha", "0.05", cwd=folder, stdin=rows.encode())
    scores = pd.read_csv(io.StringIO(out))
    assert scores["status"].tolist() == ["ok", "missing", "nonfinite", "unseen_category", "nonfinite", "missing"]
    assert np.isfinite(scores["score"][[0, 3]]).all()
    assert (scores["score"][[2, 4]] == np.inf).all()
    # What is missing is integrated out: the likelihood of what is there, and how well it is known.
    assert np.isfinite(scores[["log_prob", "score", "log_prob_error"]].loc[[1, 5]]).all(axis=None)
    assert scores["log_prob_error"].isna().tolist() == [True, False, True, True, True, False]
    assert scores["is_anomaly"][[2, 4]].tolist() == [True, True]


def test_only_anomalies(folder: Path) -> None:
    all_rows = pd.read_csv(io.StringIO(succeed("score", "run", "t.csv", "--alpha", "0.2", cwd=folder)))
    flagged = pd.read_csv(
        io.StringIO(succeed("score", "run", "t.csv", "--alpha", "0.2", "--only-anomalies", cwd=folder))
    )
    assert flagged["row_id"].tolist() == all_rows["row_id"][all_rows["is_anomaly"]].tolist()
    bar = all_rows["score"].median()
    by_score = succeed("score", "run", "t.csv", "--threshold", bar, "--only-anomalies", cwd=folder)
    assert len(by_score.splitlines()) - 1 == (all_rows["score"] >= bar).sum()


def test_several_files_a_glob_and_a_folder(folder: Path, tmp_path: Path) -> None:
    whole = pd.read_csv(folder / "t.csv")
    for i, part in enumerate(np.array_split(np.arange(400), 3)):
        whole.iloc[part].to_csv(tmp_path / f"part-{i}.csv", index=False)
    one = pd.read_csv(io.StringIO(succeed("score", folder / "run", folder / "t.csv")))
    for names in (["part-0.csv", "part-1.csv", "part-2.csv"], ["part-*.csv"], ["."]):
        many = pd.read_csv(io.StringIO(succeed("score", folder / "run", *names, cwd=tmp_path)))
        assert many["row_id"].tolist() == list(range(400))
        assert np.allclose(many["log_prob"], one["log_prob"], atol=1e-6)
        assert many["source"].nunique() == 3


def test_sample_has_the_tables_columns_and_types(folder: Path) -> None:
    succeed("sample", "run", "-n", "500", "-o", "drawn.parquet", "--seed", "3", cwd=folder)
    drawn, fitted = pq.read_table(folder / "drawn.parquet"), pq.read_table(folder / "t.parquet")
    assert drawn.schema.names == ["x", "k", "site"]
    assert all(drawn.schema.field(name).type == fitted.schema.field(name).type for name in drawn.schema.names)
    assert set(drawn["site"].to_pylist()) == set(fitted["site"].to_pylist())
    again = pd.read_csv(io.StringIO(succeed("sample", "run", "-n", "200", "--seed", "3", cwd=folder)))
    assert np.allclose(again["x"], drawn["x"].to_numpy()[:200], rtol=1e-12)
    other = pd.read_csv(io.StringIO(succeed("sample", "run", "-n", "200", "--seed", "4", cwd=folder)))
    assert not np.allclose(again["x"], other["x"])


def test_two_processes_in_a_row(folder: Path) -> None:
    line = f"{sys.executable} -m flowcli sample run -n 30000 | {sys.executable} -m flowcli score run - | head -n 3"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


def test_given_columns_at_the_command_line(folder: Path) -> None:
    succeed("fit", "maf-affine", "t.csv", "-o", "conditional", "-s", "data.include=[x]", "-s", "data.given=[k, site]",
            *FAST, cwd=folder)  # fmt: skip
    out = pd.read_csv(
        io.StringIO(succeed("sample", "conditional", "-n", "5", "--given", "k=2", "--given", "site=ü", cwd=folder))
    )
    assert out["k"].tolist() == [2] * 5
    assert out["site"].tolist() == ["ü"] * 5
    (folder / "at.csv").write_text("k,site\n0,a\n9,ü\n")
    out = pd.read_csv(io.StringIO(succeed("sample", "conditional", "-n", "3", "--given", "at.csv", cwd=folder)))
    assert out["k"].tolist() == [0, 0, 0, 9, 9, 9]
    assert len(succeed("score", "conditional", "t.csv", cwd=folder).splitlines()) == 401


def test_inspect(folder: Path) -> None:
    assert "site: category" in succeed("inspect", "run", cwd=folder)
    about = json.loads(succeed("inspect", "run/model.safetensors", "--json", cwd=folder))
    assert about["recipe"]["flow"]["type"] == "maf"
    assert about["rows"] == 360


def test_fit_is_bit_identical_for_a_seed(folder: Path) -> None:
    for run, seed in (("one", 5), ("two", 5), ("three", 6)):
        succeed("fit", "maf-affine", "t.csv", "-o", run, "-s", "data.exclude=[id]", "--seed", seed, *FAST, cwd=folder)
    one, two, three = ((folder / run / "model.safetensors").read_bytes() for run in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_dry_run_writes_nothing(folder: Path) -> None:
    out = succeed("fit", "maf-affine", "t.csv", "-o", "dry", "--dry-run", cwd=folder)
    assert "type: integer" in out
    assert not (folder / "dry").exists()


def test_init_from_starts_where_the_other_ended(folder: Path) -> None:
    options = ("-s", "data.exclude=[id, odd]", *FAST, "-s", "train.epochs=1", "-s", "train.lr=1e-9")
    succeed("fit", "maf-affine", "t.parquet", "-o", "warm", *options, "--init-from", "run", cwd=folder)
    ended = json.loads((folder / "run" / "run.json").read_text())["metrics"]["held_out_log_prob"]
    began = json.loads((folder / "warm" / "run.json").read_text())["metrics"]["held_out_log_prob"]
    assert began == pytest.approx(ended, abs=1e-4)
    options = (*options, "-s", "flow.hidden=[8]")
    wider = flowcli("fit", "maf-affine", "t.parquet", "-o", "no", *options, "--init-from", "run", cwd=folder)
    assert wider.returncode == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_resume_ends_as_if_nothing_had_been(folder: Path, number: int, code: int) -> None:
    settings = ("data.exclude=[id]", "train.epochs=150", "train.patience=150", "flow.layers=2")
    options = ["fit", "maf-affine", "t.csv", *(word for setting in settings for word in ("-s", setting))]
    whole, broken = f"whole-{code}", f"broken-{code}"
    succeed(*options, "-o", whole, cwd=folder)
    with subprocess.Popen(
        [sys.executable, "-m", "flowcli", *options, "-o", broken],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 5/"):
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == code, rest
    assert "--resume" in rest
    lines = (folder / broken / "metrics.jsonl").read_text().splitlines()
    assert 6 <= len(lines) < 150
    succeed(*options, "-o", broken, "--resume", cwd=folder)
    assert (folder / broken / "model.safetensors").read_bytes() == (folder / whole / "model.safetensors").read_bytes()
    again = flowcli(*options, "-o", broken, "--resume", cwd=folder)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    other = flowcli(*options, "-s", "train.lr=1e-2", "-o", broken, "--resume", cwd=folder)
    assert other.returncode == 2
    assert "another recipe or other data: train.lr was 0.005 and is 0.01" in other.stderr
    data = flowcli(
        *options[:2], "t.jsonl", *options[3:], "-s", "data.validation=0.2", "-o", broken, "--resume", cwd=folder
    )
    assert "data.validation was 0.1 and is 0.2" in data.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["score run big.parquet", "sample run -n 100000000"])
def test_a_signal_ends_scoring_and_drawing_at_once(folder: Path, command: str, number: int, code: int) -> None:
    big = pa.table({"x": np.linspace(0, 1, 10**6), "k": np.ones(10**6, int), "site": pa.repeat("a", 10**6)})
    pq.write_table(pa.concat_tables([big] * 3), folder / "big.parquet")
    out = folder / f"out-{code}"
    out.mkdir(exist_ok=True)
    (out / "t.parquet").write_text("precious")
    with subprocess.Popen(
        [sys.executable, "-m", "flowcli", *command.split(), "-o", f"{out.name}/t.parquet", "--force"],
        cwd=folder,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "2"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob(".*.part")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert [p.name for p in out.iterdir()] == ["t.parquet"]
    assert (out / "t.parquet").read_text() == "precious"


def test_max_time_ends_in_good_order(folder: Path) -> None:
    began = time.monotonic()
    succeed("fit", "maf-spline", "t.csv", "-o", "timed", "-s", "data.exclude=[id]", "-s", "train.epochs=100000",
            "-s", "train.patience=100000", "--max-time", "3s", cwd=folder)  # fmt: skip
    assert time.monotonic() - began < 60
    lines = [json.loads(line) for line in (folder / "timed" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["lr"] < 1e-4
    assert lines[-1]["seconds"] >= 3


def test_progress_is_one_line_an_epoch_and_quiet_is_quiet(folder: Path) -> None:
    done = flowcli("fit", "maf-affine", "t.csv", "-o", "lines", "-s", "data.exclude=[id]", *FAST, cwd=folder)
    assert sum(line.startswith("epoch ") for line in done.stderr.splitlines()) == 3
    assert done.stderr.endswith("Next: flowcli score lines t.csv -o scores.csv; flowcli report lines\n")
    assert "\x1b" not in done.stderr
    done = flowcli(
        "fit", "maf-affine", "t.csv", "-o", "lines", "-f", "-q", "-s", "data.exclude=[id]", *FAST, cwd=folder
    )
    assert done.stderr == ""
    assert done.stdout == "lines\n"


# -- what a demanding first user found ---------------------------------------------------------------------------------


def test_labels_are_ordered_as_values_not_as_text(folder: Path) -> None:
    frame = pd.read_csv(folder / "t.csv")
    far = frame.assign(x=frame["x"] + 60, odd=10)
    pd.concat([frame.assign(odd=2), far]).to_csv(folder / "labelled.csv", index=False)
    found = json.loads(succeed("evaluate", "run", "labelled.csv", "--label", "odd", "--json", cwd=folder))
    assert found["auroc"] > 0.99


def test_whole_numbers_written_as_floats_are_read(folder: Path) -> None:
    rows = "x,k,site\n100,1.0,a\n100,,a\n100,1.5,a\n100,1,a\n"
    scores = pd.read_csv(io.StringIO(succeed("score", "run", "-", cwd=folder, stdin=rows.encode())))
    assert scores["status"].tolist() == ["ok", "missing", "nonfinite", "ok"]
    assert scores["score"][0] == pytest.approx(scores["score"][3], abs=1e-5)


def test_kept_columns_of_a_text_file_stay_as_they_were(folder: Path) -> None:
    rows = "zip,big,x,k,site\n00001,12345678901234567890,100,1,a\n0x10,007,100,1,a\n"
    out = succeed("score", "run", "-", "--keep", "zip, big", "--format", "tsv", cwd=folder,
                  stdin=rows.replace(",", "\t").encode())  # fmt: skip
    kept = pd.read_csv(io.StringIO(out), sep="\t", dtype=str)
    assert kept["zip"].tolist() == ["00001", "0x10"]
    assert kept["big"].tolist() == ["12345678901234567890", "007"]


def test_a_column_that_is_not_needed_may_change_its_mind(folder: Path) -> None:
    # More than one block of a CSV: its first does not show that `note` holds words.
    lines = [f"{'' if i < 4000 else 'word'},{'-' * 2000},100,{i % 3},a\n" for i in range(4010)]
    content = ("note,pad,x,k,site\n" + "".join(lines)).encode()
    scores = succeed("score", "run", "-", "-q", cwd=folder, stdin=content)
    assert scores.count("\n") == 4011


def test_a_file_and_standard_input_together(folder: Path) -> None:
    out = succeed("score", "run", "t.csv", "-", cwd=folder, stdin=(folder / "t.csv").read_bytes())
    assert len(out.splitlines()) == 801


def test_columns_that_flowcli_writes_itself_cannot_be_kept(folder: Path) -> None:
    done = flowcli("score", "run", "-", "--keep", "source", cwd=folder, stdin=b"source,x,k,site\nme,100,1,a\n")
    assert done.returncode == 2
    assert "'source'" in done.stderr


def test_kept_columns_that_do_not_fit_are_a_sentence(folder: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(folder / "t.csv").head(5)
    frame.to_parquet(tmp_path / "1.parquet", index=False)
    frame.assign(id=[f"n{i}" for i in range(5)]).to_parquet(tmp_path / "2.parquet", index=False)
    done = flowcli("score", folder / "run", "1.parquet", "2.parquet", "--keep", "id", "-o", "s.parquet", cwd=tmp_path)
    assert done.returncode == 3
    assert "column 'id'" in done.stderr
    assert not (tmp_path / "s.parquet").exists()


def test_overrides_name_files_where_the_user_is(folder: Path, tmp_path: Path) -> None:
    pd.read_csv(folder / "t.csv").drop(columns=["id", "odd"]).to_csv(tmp_path / "v.csv", index=False)
    options = ("-s", "data.exclude=[]", "-s", "data.validation=v.csv", *FAST)
    succeed("fit", "maf-affine", "v.csv", "-o", "run", *options, cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    succeed("fit", "../run/recipe.yaml", "-o", "again", cwd=tmp_path / "elsewhere")
    one, two = (tmp_path / run / "model.safetensors" for run in ("run", "elsewhere/again"))
    assert package.load(one).about == package.load(two).about


def test_given_text_is_text_and_a_typo_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    site = rng.choice(["1.10", "1.9", "north"], 200)
    pd.DataFrame({"site": site, "x": rng.standard_normal(200)}).to_parquet(tmp_path / "t.parquet", index=False)
    succeed("fit", "maf-affine", "t.parquet", "-o", "run", "-s", "data.given=[site]", *FAST, cwd=tmp_path)
    out = pd.read_csv(
        io.StringIO(succeed("sample", "run", "-n", "3", "--given", "site=1.10", cwd=tmp_path)), dtype={"site": str}
    )
    assert out["site"].tolist() == ["1.10"] * 3
    typo = flowcli("sample", "run", "-n", "3", "--given", "site=nrth", cwd=tmp_path)
    assert typo.returncode == 3
    assert "Did you mean 'north'?" in typo.stderr


def test_arrow_files_open_elsewhere_and_stream_back(folder: Path) -> None:
    succeed("sample", "run", "-n", "5", "-o", "s.feather", cwd=folder)
    assert len(pd.read_feather(folder / "s.feather")) == 5
    content = (folder / "s.feather").read_bytes()
    out = succeed("score", "run", "-", "--format", "arrow", "-o", "fed.csv", cwd=folder, stdin=content)
    assert out == ""
    assert len(pd.read_csv(folder / "fed.csv")) == 5


def test_a_terminated_score_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flowcli", "score", str(folder / "run"), "-", "-o", str(tmp_path / "out.csv")],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"pad,x,k,site\n" + (b"-" * 2000 + b",100,1,a\n") * 5000)  # more than a block
        process.stdin.flush()
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        process.terminate()
        process.stdin.close()
        process.wait(timeout=60)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_device_only_where_nothing_else_does(folder: Path) -> None:
    code = "from flowcli.cli import main; import sys; sys.argv = ['flowcli', *sys.argv[1:]]; main()"
    options = ["fit", "maf-affine", "t.csv", "--dry-run"]
    for more, returncode in (([], 2), (["-s", "train.device=cpu"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, *options, *more], cwd=folder, capture_output=True, text=True,
            env=ENVIRONMENT | {"FLOWCLI_DEVICE": "nonsense"},
        )  # fmt: skip
        assert done.returncode == returncode, done.stderr
