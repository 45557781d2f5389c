"""The application: pages, API and what guards them."""

from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from flask import current_app, request
from flask_bootstrap import Bootstrap5
from flask_openapi3 import Info, OpenAPI
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError

from stylequeue_shared import migrate
from stylequeue_shared.database import OUTAGE, Database
from stylequeue_shared.errors import BadConfiguration
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
    rate_limits,
    records,
    security,
    uploads,
)
from stylequeue_web.forwarded import ForwardedRequests
from stylequeue_web.schemas import Problem
from stylequeue_web.services import NAME, open_services, services


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
        # Every picture at its limit, and the fields.
        MAX_CONTENT_LENGTH=(MAX_STYLES + 1) * settings.max_file_bytes + 1_000_000,
        MAX_FORM_MEMORY_SIZE=uploads.MAX_TEXT_BYTES,
        MAX_FORM_PARTS=uploads.MAX_PARTS,
        MAX_FILE_BYTES=settings.max_file_bytes,
        BOOTSTRAP_SERVE_LOCAL=True,
        WTF_CSRF_TIME_LIMIT=None,
        # It would compare with a host that a proxy may have changed; our own check of
        # the origin knows better.
        WTF_CSRF_SSL_STRICT=False,
    )
    app.wsgi_app = ForwardedRequests(app.wsgi_app, settings)  # type: ignore[assignment, method-assign]
    app.extensions[NAME] = opened = open_services(settings)
    _check_tables(opened.database)
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
    # It checks the token itself, so that a stale form is given back as it was filled.
    csrf.exempt(pages.submit)
    app.register_error_handler(CSRFError, pages.stale_page)
    app.add_template_global(new_key)
    rate_limits.limit_submissions(app)
    app.add_url_rule("/api/v1/openapi.json", view_func=description)
    _check_public_path(app, settings)
    return app


def check_ids(endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Refuse what is no id, in any address, before it reaches the database."""
    if values and "job_id" in values:
        records.check_id(values["job_id"])


def new_key() -> str:
    """Return an idempotency key for a form that is shown."""
    return str(uuid4())


def description() -> dict[str, object]:
    """Return the OpenAPI description of the API."""
    app = current_app
    assert isinstance(app, Application)
    base = services().settings.public_url or request.script_root
    return {**app.api_doc, **({"servers": [{"url": base}]} if base else {})}


def _check_public_path(app: Application, settings: Settings) -> None:
    """Refuse a public path that could not be told from an address of ours."""
    first = urlsplit(settings.public_url or "").path.split("/")[1:2]
    ours = {rule.rule.split("/")[1] for rule in app.url_map.iter_rules()}
    if first and first[0] in ours:
        raise BadConfiguration(
            f"STYLEQUEUE_PUBLIC_URL: found a path that begins with /{first[0]}, which "
            "is an address of StyleQueue itself; take another path"
        )


def _check_tables(database: Database) -> None:
    try:
        migrate.check(database)
    except OUTAGE:
        # Not there yet: requests say so, until it is.
        return
