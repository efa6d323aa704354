"""Shell lines as users write them: real processes and pipes, stdout and stderr apart, exit codes.

``flowcli`` in a line is forked from a process that has imported everything (:mod:`pipes`); ``FLOWCLI`` starts Python.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import ENVIRONMENT, served

FIT = "-f -s flow.layers=1 -s 'flow.hidden=[4]' -s train.epochs=2"
ROWS = 400
PYTHON = {
    "json": "import json, sys; print(type(json.load(sys.stdin)).__name__)",
    "jsonl": "import json, sys; print(len([json.loads(line) for line in sys.stdin]))",
    "csv": "import csv, sys; rows = list(csv.reader(sys.stdin)); print(len(rows), {len(row) for row in rows})",
    "arrow": "import sys, pyarrow.ipc as i; print(i.open_stream(sys.stdin.buffer).read_all().num_rows)",
    "sites": "import csv, sys; print(ascii(sorted({row['site'] for row in csv.DictReader(sys.stdin)})))",
    "tty": "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
}


@dataclass
class Line:
    """A shell line, its exit code, and patterns that its whole stdout and stderr match."""

    text: str
    out: str = ""
    err: str = ""
    code: int = 0


SCORED = '"row_id","source","log_prob","score","p_value","status","log_prob_error"\n'
FULL = "error: standard output: No space left on device.\n"
SITES = re.escape(ascii(["a", 'b "é,', "ü\nline"])) + "\n"
LINES = [
    # the result on stdout, the rest on stderr
    Line(f"flowcli fit quickstart t.csv -o r1 {FIT}", "r1\n",
         r"360 rows .*(epoch \d/2 .*\n){2}held-out .*\nNext: .*\n"),
    Line(f"flowcli fit quickstart t.csv -o r1 {FIT} -q", "r1\n"),
    Line(f'RUN=$(flowcli fit quickstart t.csv -o r1 {FIT} -q) && flowcli score "$RUN" t.csv | wc -l', r"\s*401\n"),
    Line("flowcli score run t.csv 2>&1 >/dev/null", ""),
    Line("flowcli score run t.csv -o s1.parquet", "",
         "400 rows written to s1.parquet\nNext: flowcli report run t.csv\n"),
    Line("flowcli score run t.csv -o s2.csv --alpha 0.1 -q"),
    Line("head -n 2 s.csv | flowcli score run - --alpha 1 -o s0.csv", "",
         "1 row written to s0.csv, 1 anomaly\nNext: .*"),
    Line("flowcli evaluate run t.csv --json -v | @json", "dict\n",
         r"\d+\.\d s, [\d,]+ MB of memory at most; flowcli [\d.]+, torch \S+, 1 thread\n"),
    Line("flowcli score run none.csv -v", "", r"error: none.csv: no such file.\n\d.* MB .*\n", 3),
    Line("flowcli fit run/recipe.yaml -o run --resume --no-progress", "run\n",
         "warning: run: is finished already; nothing to do\n.*"),
    Line("flowcli score run t.csv --alpha 1 --only-anomalies -o s3.csv", "",
         r"400 rows .* 400 anomalies\nNext: sort -t, -k4,4gr s3.csv \| head; flowcli report run t.csv\n"),
    Line("flowcli score run gone.csv", "", "error: gone.csv: no such file.\n", 3),
    Line("flowcli validate run/recipe.yaml", "run/recipe.yaml: ok\n"),
    Line("echo 'flow: {type: mav}' > bad.yaml; flowcli validate bad.yaml && echo fine", "", "error: bad.yaml:1.*\n", 2),
    # readers that leave
    Line("flowcli sample run -n 200000 | head -n 1", '"x","k","site"\n'),
    Line("flowcli sample run -n 200000 --format jsonl | head -n 1", '{"x": .*}\n'),
    Line("flowcli sample run -n 200000 --format parquet | head -c 4", "PAR1"),
    Line("flowcli sample run -n 200000 --format arrow | head -c 4 | wc -c", r"\s*4\n"),
    Line("flowcli sample run -n 50000 | flowcli score run - | head -n 1", SCORED),
    Line("FLOWCLI sample run -n 50000 | FLOWCLI score run - --format csv | head -n 1", SCORED),
    Line("flowcli sample run -n 9 | true"),
    Line("flowcli recipe show quickstart | head -n 1", "#.*\n"),
    Line("flowcli score run t.csv --alpha 1 --fail-over 0.5 | wc -l", r"\s*401\n", "error: 400 of 400 rows .*", 10),
    # what is read from standard input
    Line("cat t.csv | flowcli score run - | wc -l", r"\s*401\n"),
    Line("flowcli score run - -o - < t.csv | wc -l", r"\s*401\n"),
    Line("flowcli score run t.csv - < t.csv | wc -l", r"\s*801\n"),
    Line("flowcli score run - --format parquet -o s4.csv -f < t.parquet; wc -l < s4.csv", r"\s*401\n", "400 rows .*"),
    Line("flowcli sample run -n 30 --format jsonl | flowcli score run - --format jsonl | @jsonl", "30\n"),
    Line("flowcli sample run -n 30 --format tsv | flowcli score run - --format tsv | wc -l", r"\s*31\n"),
    Line("flowcli sample run -n 30 --format arrow | flowcli score run - --format arrow | @arrow", "30\n"),
    Line(f"flowcli fit quickstart - -o r2 {FIT} -q < t.csv", "r2\n"),
    Line(f"flowcli fit quickstart - -o r2 {FIT} -q -s train.stream=true < t.csv", "r2\n"),
    Line("flowcli evaluate run - --json < t.csv | @json", "dict\n"),
    Line("flowcli evaluate run - -q < t.csv", "rows +400\n.*"),
    Line("flowcli score run - < /dev/null", "", "error: standard input: .*\n", 3),
    Line(": | flowcli score run -", "", "error: standard input: .*\n", 3),
    Line("flowcli score run - <&-", "", "error: standard input is closed.\n", 3),
    Line("FLOWCLI score run - --format parquet <&-", "", "error: standard input is closed.\n", 3),
    Line("cp t.csv ./-; flowcli score run ./- --format csv | wc -l", r"\s*401\n"),
    # streams that are closed or full
    Line("FLOWCLI score run t.csv >&-", "", "error: standard output is closed.\n", 3),
    Line("FLOWCLI inspect run >&-", "", "error: standard output is closed.\n", 3),
    Line("FLOWCLI --version >&-", "", "error: standard output is closed.\n", 3),
    Line("FLOWCLI score run t.csv 2>&- | wc -l", r"\s*401\n"),
    Line("FLOWCLI score run gone.csv 2>&-", code=3),
    Line(f"FLOWCLI fit quickstart t.csv -o r3 {FIT} 2>&-", "r3\n"),
    Line(f"flowcli fit quickstart t.csv -o r3 {FIT} 2>/dev/full", "r3\n"),
    Line("flowcli score run gone.csv 2>/dev/full", code=3),
    *(Line(f"flowcli {command} > /dev/full", "", FULL, 3) for command in (
        "score run t.csv", "sample run -n 5", "sample run -n 5 --format jsonl", "sample run -n 5 --format arrow",
        "sample run -n 5 --format parquet", "inspect run", "inspect run --json", "evaluate run t.csv",
        "recipe show quickstart", "recipe schema", "--version", "--help", "fit --help",
    )),
    # terminals
    Line("@tty flowcli sample run -n 3 --format parquet", r"\x1b\[1;31merror:\x1b\[0m parquet is binary .*", "", 2),
    Line("@tty flowcli sample run -n 3", '"x","k","site"\r\n.*'),
    Line("NO_COLOR=1 @tty flowcli score run gone.csv", "error: gone.csv: no such file.\r\n", "", 3),
    Line("TERM=dumb @tty flowcli score run gone.csv", "error: gone.csv: no such file.\r\n", "", 3),
    Line("@tty flowcli score run gone.csv --no-color", "error: gone.csv: no such file.\r\n", "", 3),
    Line("flowcli score run gone.csv --color", "", r"\x1b\[1;31merror:\x1b\[0m gone.*", 3),
    Line(f"@tty flowcli fit quickstart t.csv -o r4 {FIT}", r"360 rows .*epoch 1/2 .*\x1b.*r4\r\n"),
    Line(f"@tty flowcli fit quickstart t.csv -o r4 {FIT} --no-progress -q", "r4\r\n"),
    Line(f"NO_COLOR=1 @tty flowcli fit quickstart t.csv -o r4 {FIT}", r"(?!.*\x1b\[[0-9;]*m).*r4\r\n"),
    # what programs read
    Line("flowcli inspect run --json | @json", "dict\n"),
    Line("flowcli recipe list --json | @json", "list\n"),
    Line("flowcli recipe schema | @json", "dict\n"),
    Line("flowcli score run t.csv --format jsonl | @jsonl", "400\n"),
    Line("flowcli score run t.csv --keep-all | @csv", r"401 \{10\}\n"),
    Line("flowcli sample run -n 300 | @sites", SITES),
    Line("flowcli sample run -n 300 | flowcli score run - --keep site | @sites", SITES),
    Line("sed 's/$/\\r/' s.csv | flowcli score run - --keep site | tail -n 1", '0*5,"-","a",.*'),
    Line("flowcli score run t.csv | tail -n +2 | sort -t, -k4 -g | tail -n 1 | cut -d, -f2", '"t.csv"\n'),
    Line("PYTHONIOENCODING=ascii FLOWCLI evaluate run t.csv", "rows .* ± .*"),
    Line("cp t.csv ü.csv; LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 FLOWCLI score run ü.csv | tail -n 1",
         '399,"ü.csv",.*'),
    Line(r"mkdir -p odd; cp t.csv odd/$'b\xff.csv'; flowcli score run odd | tail -n 1", '399,"odd/b\ufffd.csv",.*'),
    # other tools of the shell
    Line("printf 't.csv\\ns.csv\\n' | xargs flowcli score run | wc -l", r"\s*407\n"),
    Line("flowcli sample run -n 50 | tee drawn.csv | flowcli score run - | wc -l", r"\s*51\n"),
    Line("FLOWCLI score run <(cat t.csv) --format csv | wc -l", r"\s*401\n"),
    Line("flowcli recipe show quickstart | flowcli validate /dev/stdin", "/dev/stdin: ok\n"),
    Line("mkfifo p1.csv; flowcli score run t.csv -o p1.csv -q & cat p1.csv | wc -l", r"\s*401\n"),
    Line("mkfifo p3.csv; cat t.csv > p3.csv & flowcli score run s.csv p3.csv | wc -l", r"\s*407\n"),
    Line(f"mkfifo p4.csv; cat t.csv > p4.csv & flowcli fit quickstart p4.csv -o r6 {FIT} -q -s train.stream=true",
         "r6\n"),
    Line("mkfifo p2.csv; cat t.csv > p2.csv & flowcli score run p2.csv | wc -l", r"\s*401\n"),
    Line("flowcli score run t.csv -o /dev/null --format parquet && test -c /dev/null", "", "400 rows .*"),
    Line("touch real.csv; ln -s real.csv link.csv; flowcli score run t.csv -o link.csv -fq; readlink link.csv; "
         "wc -l < real.csv", r"real.csv\n\s*401\n"),
    Line("umask 077; flowcli score run t.csv -o m.csv -fq; ls -l m.csv", "-rw-------.*"),
    Line('env -i "$(command -v FLOWCLI)" score run t.csv | wc -l', r"\s*401\n"),
    Line(f"timeout 10 FLOWCLI fit quickstart t.csv -o r5 {FIT} -s train.epochs=1000000 -s train.patience=1000000 -q",
         "", "", 124),
    # exit codes
    Line("flowcli", "", "Usage: flowcli .*", 2),
    Line("flowcli nonsense", "", ".*No such command 'nonsense'.*", 2),
    Line("flowcli score run t.csv --treshold 3", "", ".*--threshold.*", 2),
    Line("flowcli score s.csv t.csv", "", "error: s.csv: not a flowcli model.*", 5),
    Line("flowcli score run t.csv --alpha 1 --fail-over 0.5 -o s5.csv -fq; echo $?; wc -l < s5.csv",
         r"10\n\s*401\n", "error: .*"),
    Line("flowcli score run t.csv --alpha 1 --fail-over 1 -q | wc -l", r"\s*401\n"),
    Line("flowcli score run t.csv -o s.csv", "", "error: s.csv: exists already; --force replaces it.\n", 2),
]  # fmt: skip


@dataclass
class Shell:
    """A folder, and one with the programs that lines may call."""

    folder: Path
    tools: Path

    def run(self, line: str) -> tuple[str, str, int]:
        """What a line wrote to stdout and stderr, and its exit code."""
        environment = ENVIRONMENT | {"PATH": f"{self.tools}:{served()}:{os.environ['PATH']}", "TERM": "xterm"}
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=120,
        )  # fmt: skip
        return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), done.returncode


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder, tools = tmp_path_factory.mktemp("pipelines"), tmp_path_factory.mktemp("bin")
    rng = np.random.default_rng(0)
    x = rng.standard_normal(ROWS)
    site = rng.choice(["a", 'b "é,', "ü\nline"], ROWS)
    frame = pd.DataFrame({"x": 100 + 5 * x, "k": rng.poisson(np.exp(x)), "site": site})
    frame.to_csv(folder / "t.csv", index=False)
    pq.write_table(pa.Table.from_pandas(frame), folder / "t.parquet")
    (folder / "s.csv").write_text("x,k,site\n" + "100.5,2,a\n" * 6)
    (tools / "FLOWCLI").write_text(f'#!/bin/sh\nexec {sys.executable} -m flowcli "$@"\n')
    for name, code in PYTHON.items():
        (tools / f"@{name}").write_text(f"#!{sys.executable}\n{code}\n")
    for path in tools.iterdir():
        path.chmod(0o755)
    shell = Shell(folder, tools)
    assert shell.run(f"flowcli fit quickstart t.csv -o run {FIT} -q")[0] == "run\n"
    return shell


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.text)
def test_a_shell_line(shell: Shell, line: Line) -> None:
    out, err, code = shell.run(line.text)
    assert code == line.code, err
    assert re.fullmatch(line.out, out, re.DOTALL), out
    assert re.fullmatch(line.err, err, re.DOTALL), err
    assert not list(shell.folder.glob(".*.part"))


def test_there_are_enough_lines() -> None:
    assert len(LINES) >= 60
