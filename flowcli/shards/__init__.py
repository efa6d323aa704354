"""Work in parts that many processes share without a word between them.

A plan, which every process derives from the inputs alone, says what each part is. A process does every n-th part,
writes it whole under the part's name, and records its digest. Whoever finds all parts recorded checks them all and
writes ``_SUCCESS.json``.
"""

from flowcli.shards.folder import SUCCESS, Folder, State, work
from flowcli.shards.inputs import Inputs
from flowcli.shards.plan import Part, Plan, plan_rows
from flowcli.shards.shard import Shard

__all__ = [
    "SUCCESS", "Folder", "Inputs", "Part", "Plan", "Shard", "State", "plan_rows", "work",
]  # fmt: skip
