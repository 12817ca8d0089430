"""Print the table of the policies in docs/data.md, from the files in dmray/rollout/behaviours.

python tools/behaviour_table.py
"""

from __future__ import annotations

from dmray.rollout.behaviours import load_snapshots, snapshot_file
from dmray.tasks import TASKS

_HEAD = "| task | policy | search steps | return | normalized |\n|---|---|--:|--:|--:|"


def table() -> str:
    """For each task: the first policy of the search, medium and expert, with the return that recordings have."""
    lines = [_HEAD]
    for task in TASKS.values():
        if not snapshot_file(task).exists():
            continue
        snapshots = load_snapshots(task)
        for name, index in (("first", 0), ("medium", snapshots.medium), ("expert", snapshots.expert)):
            found = float(snapshots.returns[index])
            score = task.reference.normalize(found)
            lines.append(f"| {task.name} | {name} | {snapshots.env_steps[index]:,} | {found:,.0f} | {score:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
