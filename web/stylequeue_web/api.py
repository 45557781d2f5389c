"""The JSON API: `/api/v1`."""

import json
import re
from typing import Any
from urllib.parse import urlencode

from flask import Response, request, url_for
from flask_openapi3 import APIBlueprint, Tag
from werkzeug.datastructures import FileStorage
from werkzeug.http import parse_etags

from stylequeue_shared import jobs, reading
from stylequeue_shared.errors import InvalidPicture, InvalidSetting, UserError
from stylequeue_shared.models import JobState
from stylequeue_shared.turns import PRIORITIES
from stylequeue_web import operators, records, renditions, schemas, submissions
from stylequeue_web.services import services

# How soon a poll may find something new, in seconds.
RETRY_AFTER = "1"
FIELDS = {"content", "style", "settings", "priority", "owner"}
OWNER = re.compile(r"^[A-Za-z0-9._@-]{1,64}$")
SUBMISSION = {
    "type": "object",
    "required": ["content", "style"],
    "additionalProperties": False,
    "properties": {
        "content": {"type": "string", "format": "binary"},
        "style": {
            "type": "array",
            "minItems": 1,
            "maxItems": 8,
            "items": {"type": "string", "format": "binary"},
        },
        "settings": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": "A JSON object of job settings; what is left out has its "
            "default.",
        },
        "priority": {
            "type": "string",
            "enum": list(PRIORITIES),
            "description": "For operators: the class in which it waits.",
        },
        "owner": {
            "type": "string",
            "pattern": OWNER.pattern,
            "description": "For operators: whose share of the workers it is.",
        },
    },
}
PICTURE = {
    "description": "The picture.",
    "content": {"image/png": {}, "image/jpeg": {}},
}
RESULT = {
    "description": "The picture; a TIFF if the job's `result_format` is one.",
    "content": {"image/png": {}, "image/tiff": {}, "image/jpeg": {}},
}
PROBLEM = {
    "description": "A problem detail.",
    "content": {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    },
}

blueprint = APIBlueprint(
    "api",
    __name__,
    url_prefix=records.PREFIX,
    abp_tags=[Tag(name="jobs")],
    # 422 by itself, or flask-openapi3 would describe its own.
    abp_responses={"422": PROBLEM, "4XX": PROBLEM, "5XX": PROBLEM},
)


@blueprint.post(
    "/jobs",
    responses={200: schemas.JobBody, 201: schemas.JobBody},
    openapi_extensions={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": SUBMISSION}},
        }
    },
)
def submit(header: schemas.SubmissionHeader) -> Response:
    """Submit a job: a content picture, one or more style pictures, settings.

    200 instead of 201 if the same request, by its Idempotency-Key, came before.
    """
    _refuse_unknown_fields()
    content = _files("content")
    if len(content) != 1:
        raise InvalidPicture(
            f"content: found {len(content)} pictures; exactly one is needed",
            field="content",
        )
    settings = request.form.getlist("settings")
    if len(settings) > 1:
        raise InvalidSetting(
            "settings: found twice; one JSON object is allowed", field="settings"
        )
    text = settings[0] if settings else None
    job_id, is_new = submissions.submit(
        *(services(), content[0], _files("style"), text),
        key=header.idempotency_key,
        **_standing(),
    )
    return _created(job_id, 201 if is_new else 200)


@blueprint.get("/jobs/<job_id>", responses={200: schemas.JobBody})
def show(path: schemas.JobPath) -> Response:
    """Return a job; with its ETag as If-None-Match, 304 while it is the same."""
    given = request.headers.get("If-None-Match")
    if given is not None:
        found = records.version(services(), path.job_id)
        if parse_etags(given).contains_weak(found.etag):
            return _polled(Response(status=304), found)
    body, found = records.job_and_version(services(), path.job_id)
    return _polled(json_answer(body), found)


@blueprint.get("/jobs", responses={200: schemas.JobsBody})
def index(query: schemas.JobsQuery) -> Response:
    """List jobs, newest first."""
    bodies, cursor = records.page(
        services(), state=query.state, limit=query.limit, cursor=query.cursor
    )
    following = None
    if cursor is not None:
        asked = {"limit": query.limit, "cursor": cursor}
        if query.state is not None:
            asked["state"] = query.state.value
        following = f"{url_for('api.index')}?{urlencode(asked)}"
    return json_answer({"jobs": bodies, "next": following})


@blueprint.post("/jobs/<job_id>/cancel", responses={202: schemas.JobBody})
def cancel(path: schemas.JobPath) -> Response:
    """Ask for a job to be cancelled; an ended one is left as it is."""
    return _requested(path.job_id, "cancel")


@blueprint.post("/jobs/<job_id>/finish", responses={202: schemas.JobBody})
def finish(path: schemas.JobPath) -> Response:
    """Ask for the newest picture to become the result; 409 where there is none."""
    return _requested(path.job_id, "finish")


@blueprint.post("/jobs/<job_id>/pause", responses={202: schemas.JobBody})
def pause(path: schemas.JobPath) -> Response:
    """Ask for a job to be put aside, to go on later from where it stood."""
    return _requested(path.job_id, "pause")


@blueprint.post("/jobs/<job_id>/resume", responses={202: schemas.JobBody})
def resume(path: schemas.JobPath) -> Response:
    """Have a paused job wait for its turn again; 503 while too many wait."""
    records.resume(services(), path.job_id)
    return json_answer(records.job(services(), path.job_id), 202)


@blueprint.post(
    "/jobs/<job_id>/retry", responses={200: schemas.JobBody, 201: schemas.JobBody}
)
def retry(path: schemas.JobPath, header: schemas.SubmissionHeader) -> Response:
    """Submit an ended job once more: same pictures and settings, same seed.

    200 instead of 201 if the same request, by its Idempotency-Key, came before.
    """
    key = header.idempotency_key
    job_id, is_new = records.retry(
        services(), path.job_id, None if key is None else f" {key}"
    )
    return _created(job_id, 201 if is_new else 200)


@blueprint.delete("/jobs/<job_id>", responses={204: None})
def delete(path: schemas.JobPath) -> Response:
    """Delete an ended job and its pictures."""
    jobs.forget(services().database, path.job_id)
    return Response(status=204)


@blueprint.get("/jobs/<job_id>/result", responses={200: RESULT})
def result(path: schemas.JobPath, query: schemas.PictureQuery) -> Response:
    """Return the final picture; `?size=512` a smaller one."""
    key = reading.result_key(services().database, path.job_id)
    return renditions.send_made(services(), key, f"stylequeue-{path.job_id}")


@blueprint.get("/jobs/<job_id>/snapshots/<int:step>", responses={200: PICTURE})
def snapshot(path: schemas.SnapshotPath, query: schemas.PictureQuery) -> Response:
    """Return the picture after a step; `?size=512` a smaller one."""
    key = reading.snapshot_key(services().database, path.job_id, path.step)
    name = f"stylequeue-{path.job_id}-{path.step}"
    return renditions.send_made(services(), key, name)


@blueprint.get("/jobs/<job_id>/content", responses={200: PICTURE})
def content(path: schemas.JobPath, query: schemas.PictureQuery) -> Response:
    """Return the content picture, without the metadata of the upload."""
    sha256 = reading.content_sha(services().database, path.job_id)
    return renditions.send_original(services(), sha256, "content")


@blueprint.get("/jobs/<job_id>/styles/<int:number>", responses={200: PICTURE})
def style(path: schemas.StylePath, query: schemas.PictureQuery) -> Response:
    """Return a style picture, without the metadata of the upload."""
    sha256 = reading.style_sha(services().database, path.job_id, path.number)
    return renditions.send_original(services(), sha256, f"style-{path.number}")


@blueprint.get("/queue", responses={200: schemas.QueueBody})
def queue() -> Response:
    """Say whether an operator paused the queue, and how many jobs wait."""
    return json_answer(records.queue(services()))


@blueprint.get("/workers", responses={200: schemas.WorkersBody})
def workers() -> Response:
    """Return the workers seen lately."""
    return json_answer({"workers": records.workers(services())})


def _requested(job_id: str, what: jobs.Request) -> Response:
    jobs.request(services().database, job_id, what)
    return json_answer(records.job(services(), job_id), 202)


def _standing() -> dict[str, Any]:
    """Read what only an operator may give, and check that one does."""
    given = {
        name: request.form.getlist(name)[0]
        for name in ("priority", "owner")
        if name in request.form
    }
    if given:
        operators.require()
    if given.get("priority", "normal") not in PRIORITIES:
        raise InvalidSetting(
            f"priority: found {given['priority'][:40]!r}; allowed are "
            f"{', '.join(PRIORITIES)}",
            field="priority",
        )
    if not OWNER.fullmatch(given.get("owner", "me")):
        raise InvalidSetting(
            f"owner: found {given['owner'][:80]!r}; allowed are 1 to 64 letters, "
            "digits and . _ @ -",
            field="owner",
        )
    return given


def _refuse_unknown_fields() -> None:
    if request.mimetype != "multipart/form-data":
        raise UserError(
            f"The body is {request.mimetype[:80] or 'of no type'!r}; "
            "multipart/form-data is needed, with the fields content, style, settings."
        )
    for name in (*request.form, *request.files):
        if name not in FIELDS:
            # A part may come without a name.
            shown = (name or "")[:40]
            raise UserError(
                f"{shown}: no such field; the fields are {', '.join(sorted(FIELDS))}",
                field=shown,
            )
    for name in ("content", "style"):
        if name in request.form:
            raise InvalidPicture(f"{name}: found text; a file is needed", field=name)
    if "settings" in request.files:
        # curl sends `-F settings=@file.json` as a file.
        raise InvalidSetting(
            "settings: found a file; a JSON object as text is needed", field="settings"
        )


def _files(name: str) -> list[FileStorage]:
    return request.files.getlist(name)


def _created(job_id: str, status: int) -> Response:
    body = records.job(services(), job_id)
    response = json_answer(body, status)
    response.headers["Location"] = body["links"]["self"]
    return response


def as_json(body: dict[str, Any]) -> str:
    """Write a body as it is sent."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def json_answer(body: dict[str, Any], status: int = 200) -> Response:
    """Answer with a body of the API."""
    return Response(as_json(body), status, mimetype="application/json")


def _polled(response: Response, version: records.Version) -> Response:
    response.headers["ETag"] = f'"{version.etag}"'
    response.headers["Cache-Control"] = "no-cache, private"
    if not JobState(version.state).is_terminal:
        response.headers["Retry-After"] = RETRY_AFTER
    return response
