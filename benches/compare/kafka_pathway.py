#!/usr/bin/env python3
"""Pathway's Kafka reader over a topic of benches/kafka.rs, which starts this as one of its steps.

    kafka_pathway.py BROKERS TOPIC SHAPE LIVE

Reads the topic to rows by primary key (SHAPE `Small`: JSON values; `Debezium`: `pw.io.debezium`), on
the worker threads that PATHWAY_THREADS says, and ends when as many rows are live as the topic comes
to at its end and no change came for a while (that while is not counted). A callback in Python sees
every change: that is Pathway's way to hand rows out, and its time is in the figure. Prints one line:
{"seconds":…,"cpu":…,"peak_mib":…,"bytes":0}.
"""

import json
import os
import resource
import sys
import threading
import time

QUIET = 3.0
PATIENCE = 900.0


class Rows:
    """Counts live rows and notes when they last changed."""

    def __init__(self):
        self.live = 0
        self.at = time.monotonic()
        self.cpu = 0.0

    def change(self, key, row, time, is_addition):
        self.live += 1 if is_addition else -1

    def time_end(self, _time):
        self.at = time.monotonic()
        self.cpu = cpu_seconds()


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    brokers, topic, shape, live = sys.argv[1:]
    import pathway as pw

    class Small(pw.Schema):
        id: int = pw.column_definition(primary_key=True)
        kind: str
        n: int
        body: str

    class Document(pw.Schema):
        id: int = pw.column_definition(primary_key=True)
        tenant: str | None
        title: str | None
        body: str | None

    settings = {
        "bootstrap.servers": brokers,
        # A group of its own: of an earlier run's the broker would first await the dead member.
        "group.id": f"headwater-compare-{os.getpid()}",
        "auto.offset.reset": "earliest",
        "fetch.queue.backoff.ms": "20",
    }
    begun, cpu, rows = time.monotonic(), cpu_seconds(), Rows()
    if shape == "Small":
        table = pw.io.kafka.read(settings, topic, schema=Small, format="json", autocommit_duration_ms=100)
    else:
        table = pw.io.debezium.read(settings, topic, schema=Document, autocommit_duration_ms=100)
    pw.io.subscribe(table, on_change=rows.change, on_time_end=rows.time_end)

    def watch():
        while rows.live != int(live) or time.monotonic() - rows.at < QUIET:
            if time.monotonic() - begun > PATIENCE:
                print(f"{rows.live} rows are live, not {live}", file=sys.stderr, flush=True)
                os._exit(1)
            time.sleep(0.05)
        figures = {
            "seconds": rows.at - begun,
            "cpu": rows.cpu - cpu,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "bytes": 0,
        }
        print(json.dumps(figures), flush=True)
        # A streaming run does not end by itself.
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


main()
