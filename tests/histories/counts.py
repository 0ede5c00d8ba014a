"""A server's own counters, read from its metrics as an operator would."""

import json
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.service import PATIENCE, Service

METRICS = ("--metrics-listen", "127.0.0.1:0")
"""The flags that make a server publish them."""

BCRYPT_RUNS = "tumbler_bcrypt_runs_total"
RECORD_READS = "tumbler_record_reads_total"
WATCH_STREAMS = "tumbler_watch_streams"


def counts(service: Service) -> dict[str, float]:
    """Return the counters of a server that was started with ``METRICS``, by name, summed over their labels."""
    logged = [json.loads(line) for line in service.stderr.splitlines() if line.startswith("{")]
    (address,) = [line["address"] for line in logged if line["event"] == "metrics are served"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found
