"""Ask an exported run questions in SQL.

    resia export RUN --to parquet --out run.parquet
    python examples/query_run.py run.parquet

A row is an event; `payload` is its whole content as JSON, and what is asked for often has a column of its own.
"""

from __future__ import annotations

import sys

import duckdb

ROLLOUTS = """
    select purpose, split, count(*) as rollouts, avg(reward) as reward, avg(success::int) as success
    from events where type = 'rollout-recorded' group by purpose, split order by purpose, split
"""
DECISIONS = """
    select iteration, action, coalesce(algorithm, '-'), reason, payload ->> '$.merkle_root'
    from events where type = 'decision-made' order by run, sequence
"""
SHARE = """
    select role, count(*), round(100.0 * count(*) / sum(count(*)) over (), 1)
    from events where role is not null group by role order by role
"""


def main(path: str) -> None:
    events = duckdb.read_parquet(path)  # noqa: F841 - the queries name it
    for purpose, split, rollouts, reward, success in duckdb.sql(ROLLOUTS).fetchall():
        sys.stdout.write(f"rollouts  {purpose:10} {split:10} {rollouts:6} {reward:.3f} success {success:.0%}\n")
    for iteration, action, algorithm, reason, root in duckdb.sql(DECISIONS).fetchall():
        sys.stdout.write(f"decision  {iteration:3}  {action}  {algorithm}  {reason}  (root {root[:12]})\n")
    for role, count, percent in duckdb.sql(SHARE).fetchall():
        sys.stdout.write(f"events    {role:10} {count:6} {percent}%\n")


if __name__ == "__main__":
    main(sys.argv[1])
