"""Whether we are alive and ready, and the numbers for Prometheus."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Blueprint, Response, current_app
from flask.blueprints import BlueprintSetupState
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stylequeue_shared import reading
from stylequeue_shared.models import LOST_LEASES, SKIPPED_ROWS, JobState
from stylequeue_shared.stored_values import finite, numbers_of
from stylequeue_web import operators
from stylequeue_web.readiness import DEGRADED, OK, Readiness, make_readiness
from stylequeue_web.services import NAME, Services, services

# What workers count, and what they measure the seconds of.
TALLIED = {
    "resumes": "Jobs that went on from a checkpoint.",
    "out_of_memory": "Times that a job found too little memory.",
}
TALLIED_SECONDS = {
    "start": "Time from a job's submission to its start.",
    "checkpoint": "Time to write a checkpoint.",
}

READINESS = "stylequeue_readiness"

blueprint = Blueprint("health", __name__)


@blueprint.record
def _set_up(state: BlueprintSetupState) -> None:
    extensions = state.app.extensions
    extensions[READINESS] = make_readiness(extensions[NAME])


@blueprint.get("/healthz")
def alive() -> Response:
    """Say that this process answers, whatever else does not."""
    return Response(json.dumps({"status": "alive"}), mimetype="application/json")


@blueprint.get("/readyz")
def ready() -> Response:
    """Say whether all that a submitted job is written to takes it, each by name.

    Without Redis they are taken and polled as ever, and start when it is back.
    """
    readiness: Readiness = current_app.extensions[READINESS]
    found = readiness.found()
    is_ready = set(found.values()) <= {OK, DEGRADED}
    status = "ready" if is_ready else "not ready"
    return Response(
        json.dumps({"status": status, **found}),
        200 if is_ready else 503,
        mimetype="application/json",
    )


@blueprint.get("/metrics")
def metrics() -> Response:
    """Return the numbers in the format of Prometheus; owners by name to operators."""
    registry = CollectorRegistry()
    registry.register(JobNumbers(services(), names=operators.shows_token()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class JobNumbers:
    """Read from the database when asked, so that all web processes say the same."""

    def __init__(self, ours: Services, *, names: bool) -> None:
        self._services = ours
        self._names = names

    def collect(self) -> Iterable[Metric]:
        database = self._services.database
        counts = reading.counts(database)
        by_state = GaugeMetricFamily(
            "stylequeue_jobs", "Jobs by state.", labels=["state"]
        )
        for state in JobState:
            by_state.add_metric([state.value], counts.get(state.value, 0))
        yield by_state
        yield GaugeMetricFamily(
            "stylequeue_oldest_waiting_seconds",
            "Age of the oldest waiting job; 0 when none waits.",
            value=reading.oldest_waiting_seconds(database),
        )
        seen = reading.workers(database)
        yield GaugeMetricFamily(
            "stylequeue_workers", "Workers seen lately.", value=len(seen)
        )
        yield GaugeMetricFamily(
            "stylequeue_workers_taking_jobs",
            "Of these, those that neither refuse jobs nor were drained.",
            value=sum(not (one.refuses or one.drain) for one in seen),
        )
        yield GaugeMetricFamily(
            "stylequeue_steps_per_second",
            "Optimisation steps per second of all workers.",
            value=sum(finite(worker.steps_per_second) or 0.0 for worker in seen),
        )
        yield GaugeMetricFamily(
            "stylequeue_queue_paused",
            "1 while an operator has no job start.",
            value=reading.is_paused(database),
        )
        yield CounterMetricFamily(
            "stylequeue_lost_leases",
            "Jobs whose worker vanished.",
            value=reading.counter(database, LOST_LEASES),
        )
        yield CounterMetricFamily(
            "stylequeue_rows_skipped",
            "Rows of the database that could not be read; the log names them.",
            value=reading.counter(database, SKIPPED_ROWS),
        )
        yield self._worker_seconds(reading.worker_seconds(database))
        yield from _tallied(seen)

    def _worker_seconds(self, by_owner: Mapping[str, float]) -> Metric:
        """Return the sum, or each owner's to those who may know the names."""
        family = CounterMetricFamily(
            "stylequeue_worker_seconds",
            "What jobs took of the workers; by owner for operators.",
            labels=["owner"] if self._names else [],
        )
        if not self._names:
            family.add_metric([], sum(by_owner.values()))
            return family
        for owner, seconds in by_owner.items():
            family.add_metric([owner], seconds)
        return family


def _tallied(workers: Iterable[Any]) -> Iterable[Metric]:
    """Return what each worker counted since its start."""
    tallies = {worker.name: numbers_of(worker.tally) for worker in workers}
    for name, documentation in TALLIED_SECONDS.items():
        summary = SummaryMetricFamily(
            f"stylequeue_{name}_seconds", documentation, labels=["worker"]
        )
        for worker, tally in tallies.items():
            count = tally.get(f"{name}s", 0)
            summary.add_metric([worker], count, tally.get(f"{name}_seconds", 0.0))
        yield summary
    for name, documentation in TALLIED.items():
        counter = CounterMetricFamily(
            f"stylequeue_{name}", documentation, labels=["worker"]
        )
        for worker, tally in tallies.items():
            counter.add_metric([worker], tally.get(name, 0))
        yield counter
