"""Errors as answers: problem details (RFC 9457) for programs, pages for people."""

import json
from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, current_app, make_response, request
from flask.typing import ResponseReturnValue
from flask_limiter import RateLimitExceeded
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from stylequeue_shared.database import OUTAGE
from stylequeue_shared.errors import InFlight, MachineError, OurError, StyleQueueError
from stylequeue_shared.system_errors import as_machine_error
from stylequeue_web.admission import MAX_OTHER_BYTES, UPLOAD_ENDPOINTS
from stylequeue_web.pages import error_page
from stylequeue_web.rate_limits import seconds_until

MEDIA_TYPE = "application/problem+json"
# Neither needs a page: programs ask for them.
FOR_PROGRAMS = ("/api/", "/healthz", "/readyz", "/metrics")

log = structlog.get_logger()


def register(app: Flask) -> None:
    """Answer every error of the application here."""
    app.register_error_handler(StyleQueueError, from_ours)
    app.register_error_handler(HTTPException, from_http)
    for outage in OUTAGE:
        app.register_error_handler(outage, from_outage)
    app.register_error_handler(OSError, from_system)
    app.register_error_handler(MemoryError, from_system)
    app.register_error_handler(Exception, from_defect)


def problem(status: int, code: str, detail: str, field: str | None = None) -> Response:
    """Return a problem detail; `code` is stable, `field` names what is to be mended."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if field is not None:
        body["field"] = field
    return Response(json.dumps(body), status, mimetype=MEDIA_TYPE)


def from_ours(error: StyleQueueError) -> ResponseReturnValue:
    """Answer an error that StyleQueue raised on purpose."""
    if isinstance(error, OurError):
        return from_defect(error)
    response = _answer(error.status, error.code, error.message, error.field)
    if isinstance(error, MachineError | InFlight):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def from_model(error: ValidationError) -> Response:
    """Answer a path or query that does not fit its model."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else None
    detail = f"{field}: found {str(first['input'])[:40]!r}; {first['msg']}"
    return problem(422, "invalid_request", detail, field)


def from_http(error: HTTPException) -> ResponseReturnValue:
    """Answer an error of HTTP, such as an unknown route."""
    status = error.code or 500
    if error.response is not None or status < 400:
        return error
    code = HTTPStatus(status).name.lower()
    detail = error.description or ""
    if isinstance(error, RateLimitExceeded):
        (limiter,) = current_app.extensions["limiter"]
        error.retry_after = seconds_until(limiter.current_limit.reset_at)
        detail = (
            f"Too many submissions from this address: {detail} are allowed; "
            f"try again in {error.retry_after} s."
        )
    if isinstance(error, RequestEntityTooLarge):
        detail = _too_large()
    response = _answer(status, code, detail, None)
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def from_outage(error: Exception) -> ResponseReturnValue:
    """Answer that the database is away or busy: it may soon be there again."""
    _log("database_away", error)
    return from_ours(MachineError("The database does not answer; try again soon."))


def from_system(error: OSError | MemoryError) -> ResponseReturnValue:
    """Answer what the operating system refuses: often for want of space or memory."""
    ours = as_machine_error(error)
    if ours is None:
        return from_defect(error)
    _log("machine_error", error)
    return from_ours(ours)


def from_defect(error: Exception) -> ResponseReturnValue:
    """Answer an unforeseen error: the log tells all, the client nothing of it."""
    _log("request_failed", error)
    return _answer(500, "internal", "Something went wrong on our side.", None)


def _too_large() -> str:
    if request.endpoint not in UPLOAD_ENDPOINTS:
        return f"The body is too long; allowed are {MAX_OTHER_BYTES / 1000:.0f} kB."
    config = current_app.config
    return (
        f"The form is too large; allowed are {config['MAX_CONTENT_LENGTH'] / 1e6:.0f} "
        f"MB in all, {config['MAX_FORM_PARTS']} pictures and other fields, and "
        f"{config['MAX_FORM_MEMORY_SIZE'] / 1000:.0f} kB in a field of text such as "
        "settings."
    )


def _log(event: str, error: Exception) -> None:
    log.error(event, method=request.method, path=request.path, exc_info=error)


def _answer(status: int, code: str, detail: str, field: str | None) -> Response:
    if request.path.startswith(FOR_PROGRAMS):
        return problem(status, code, detail, field)
    return make_response(error_page(status, detail))
