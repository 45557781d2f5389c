"""The operators' part of the JSON API: each call needs the token."""

from typing import Any

from flask import Response
from flask_openapi3 import APIBlueprint, Tag

from stylequeue_shared import jobs, registry
from stylequeue_web import operators, records, schemas
from stylequeue_web.api import PROBLEM, json_answer
from stylequeue_web.services import services

SECURITY: list[dict[str, list[Any]]] = [{"operator": []}]

blueprint = APIBlueprint(
    "operating",
    __name__,
    url_prefix=records.PREFIX,
    abp_tags=[Tag(name="operators")],
    abp_security=SECURITY,
    abp_responses={"422": PROBLEM, "4XX": PROBLEM, "5XX": PROBLEM},
)
blueprint.before_request(operators.require)


@blueprint.post("/jobs/<job_id>/priority", responses={202: schemas.JobBody})
def priority(path: schemas.JobPath, body: schemas.PriorityBody) -> Response:
    """Move a waiting job to another class of priority."""
    jobs.prioritise(services().database, path.job_id, body.priority)
    return _job(path.job_id)


@blueprint.post("/jobs/<job_id>/front", responses={202: schemas.JobBody})
def front(path: schemas.JobPath) -> Response:
    """Make a waiting job the next one."""
    jobs.put_in_front(services().database, path.job_id)
    return _job(path.job_id)


@blueprint.post("/queue/pause", responses={202: schemas.QueueBody})
def pause() -> Response:
    """Have no waiting job start until `resume`; running ones go on."""
    jobs.pause_queue(services().database, paused=True)
    return json_answer(records.queue(services()), 202)


@blueprint.post("/queue/resume", responses={202: schemas.QueueBody})
def resume() -> Response:
    """Have waiting jobs start again."""
    records.resume_queue(services())
    return json_answer(records.queue(services()), 202)


@blueprint.post("/workers/<name>/drain", responses={202: schemas.WorkersBody})
def drain(path: schemas.WorkerPath, query: schemas.DrainQuery) -> Response:
    """Have a worker take no more jobs; it finishes or hands back the one it runs."""
    registry.drain(services().database, path.name, query.running)
    return json_answer({"workers": records.workers(services())}, 202)


def _job(job_id: str) -> Response:
    return json_answer(records.job(services(), job_id), 202)
