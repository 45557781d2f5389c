"""The application: pages, API and what guards them."""

from typing import Any

from flask import current_app, request
from flask_bootstrap import Bootstrap5
from flask_limiter import HeaderNames, Limiter
from flask_limiter.util import get_remote_address
from flask_openapi3 import Info, OpenAPI
from flask_wtf import CSRFProtect

from stylequeue_shared import migrate
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.job_settings import MAX_STYLES
from stylequeue_shared.settings import Settings
from stylequeue_web import (
    admission,
    api,
    fleet,
    health,
    operating,
    pages,
    problems,
    records,
    security,
    uploads,
)
from stylequeue_web.schemas import Problem
from stylequeue_web.services import NAME, open_services

# Submissions per address; each server process counts for itself, so that counting
# needs no Redis.
SUBMISSIONS = "120 per minute"
# Wrong tokens per address.
GUESSES = "20 per minute"


class Application(OpenAPI):
    """Flask with our request class, which cuts uploads off."""

    request_class = uploads.CappedRequest


def create_app(settings: Settings) -> Application:
    """Build the application; call it after the fork, since it connects.

    Raises BadConfiguration when the tables are not up to date.
    """
    app = Application(
        __name__,
        info=Info(title="StyleQueue", version="1"),
        doc_ui=False,
        security_schemes={"operator": {"type": "http", "scheme": "bearer"}},
        validation_error_callback=problems.from_model,
        validation_error_model=Problem,
    )
    app.config.update(
        SECRET_KEY=settings.cookie_key,
        SESSION_COOKIE_NAME="stylequeue",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        # Every picture at its limit, and the fields.
        MAX_CONTENT_LENGTH=(MAX_STYLES + 1) * settings.max_file_bytes + 1_000_000,
        MAX_FORM_MEMORY_SIZE=uploads.MAX_TEXT_BYTES,
        MAX_FORM_PARTS=uploads.MAX_PARTS,
        MAX_FILE_BYTES=settings.max_file_bytes,
        BOOTSTRAP_SERVE_LOCAL=True,
        WTF_CSRF_TIME_LIMIT=None,
    )
    app.extensions[NAME] = services = open_services(settings)
    _check_tables(services.database)
    security.protect(app, settings)
    # Before the check of the form's token, which reads the body.
    admission.protect(app)
    app.url_value_preprocessor(check_ids)
    problems.register(app)
    Bootstrap5(app)
    csrf = CSRFProtect(app)
    app.register_api(api.blueprint)
    app.register_api(operating.blueprint)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(pages.pages)
    app.register_blueprint(fleet.pages)
    # No cookie says who calls the API; what guards it is the check of the origin.
    for name in (api.blueprint.name, operating.blueprint.name, health.blueprint.name):
        csrf.exempt(app.blueprints[name])
    limiter = Limiter(
        get_remote_address,
        app=app,
        storage_uri="memory://",
        headers_enabled=True,
        # Else every submission, accepted or not, would be told to be sent once more.
        header_name_mapping={HeaderNames.RETRY_AFTER: "X-RateLimit-Reset-After"},
    )
    # What is only read is not limited; looking that up would cost each poll a tenth.
    limiter.request_filter(lambda: request.method in security.SAFE_METHODS)
    limited = limiter.shared_limit(SUBMISSIONS, scope="submissions")
    sign_in: Any = app.view_functions["fleet.sign_in"]
    for endpoint in ("api.submit", "api.retry", "pages.submit", "pages.retry"):
        view: Any = app.view_functions[endpoint]
        app.view_functions[endpoint] = limited(view)
    # Nobody shall find the token by trying.
    guarded = limiter.shared_limit(
        GUESSES, scope="guesses", deduct_when=lambda answer: answer.status_code == 401
    )
    guarded(operating.blueprint)
    app.view_functions["fleet.sign_in"] = guarded(sign_in)
    app.add_url_rule("/api/v1/openapi.json", view_func=description)
    return app


def check_ids(endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Refuse what is no id, in any address, before it reaches the database."""
    if values and "job_id" in values:
        records.check_id(values["job_id"])


def description() -> dict[str, object]:
    """Return the OpenAPI description of the API."""
    app = current_app
    assert isinstance(app, Application)
    return dict(app.api_doc)


def _check_tables(database: Database) -> None:
    try:
        migrate.check(database)
    except OUTAGE:
        # Not there yet: requests say so, until it is.
        return
