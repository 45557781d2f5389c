"""Whether we are alive and ready, and the numbers for Prometheus."""

import json
from collections.abc import Callable, Iterable

import structlog
from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stylequeue_shared import reading
from stylequeue_shared.models import JobState
from stylequeue_web.services import Services, services

blueprint = Blueprint("health", __name__)
log = structlog.get_logger()


@blueprint.get("/healthz")
def alive() -> Response:
    """Say that this process answers, whatever else does not."""
    return Response(json.dumps({"status": "alive"}), mimetype="application/json")


@blueprint.get("/readyz")
def ready() -> Response:
    """Say whether database, Redis and store answer, each by name."""
    ours = services()
    found = {
        "database": _answers(ours.database.check),
        "redis": _answers(ours.bell.check),
        "store": _answers(ours.store.check),
    }
    all_there = set(found.values()) == {"ok"}
    status = "ready" if all_there else "not ready"
    return Response(
        json.dumps({"status": status, **found}),
        200 if all_there else 503,
        mimetype="application/json",
    )


@blueprint.get("/metrics")
def metrics() -> Response:
    """Return the numbers in the format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(JobNumbers(services()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class JobNumbers:
    """Read from the database when asked, so that all web processes say the same."""

    def __init__(self, ours: Services) -> None:
        self._services = ours

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
            "stylequeue_steps_per_second",
            "Optimisation steps per second of all workers.",
            value=sum(worker.steps_per_second or 0.0 for worker in seen),
        )


def _answers(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        # Its text may hold addresses: for the log only.
        log.warning("not_ready", error=str(error))
        return "does not answer"
    return "ok"
