"""The pages: the submission form, a job, the gallery, and the pages of errors.

All of them work without JavaScript; scripts add previews, progress and live pictures.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import BoundedSemaphore
from typing import Any

from flask import (
    Blueprint,
    Response,
    flash,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError, generate_csrf

from stylequeue_shared import images, jobs
from stylequeue_shared.errors import InFlight, NotFound, UserError
from stylequeue_shared.job_settings import MAX_STYLES, PRESET_MEANINGS, PRESETS
from stylequeue_shared.models import TERMINAL, JobState
from stylequeue_shared.pictures.formats import FORM_ACCEPT
from stylequeue_web import form_pictures, forms, records, words
from stylequeue_web.samples import sample_bytes, samples
from stylequeue_web.services import services
from stylequeue_web.submissions import submit as submit_job

PER_PAGE = 24
# The only smaller size that samples are made in.
SAMPLE_SIZE = 256
# How long the second of two clicks waits for the first, in seconds; two of them at a
# time in each process, so that waiting takes few threads.
PAUSES = (0.3, 0.7, 1, 2, 3, 3)
SECOND_CLICKS = BoundedSemaphore(2)

pages = Blueprint("pages", __name__)


@pages.get("/")
def index() -> ResponseReturnValue:
    """Show the form, filled with `quick` or with the settings of the job `?from=`."""
    source = request.args.get("from")
    settings = None
    if source:
        records.check_id(source)
        settings = records.job(services(), source)["settings"]
    form = forms.job_form(services().settings)(data=forms.suggested(settings))
    return _form_page(form, source=source)


@pages.post("/")
def submit() -> ResponseReturnValue:
    """Take a submission; scripts ask for JSON and keep the chosen files if refused."""
    form = forms.job_form(services().settings)()
    # The token of the session is a field like others: see CSRFProtect in app.py.
    is_complete = form.validate()
    if is_complete:
        try:
            job_id = _submit(form)
        except UserError as error:
            _place(form, error)
        else:
            page = url_for("pages.job", job_id=job_id)
            if _wants_json():
                return {"location": page}, 201
            return redirect(page, 303)
    status = 400 if form.is_stale else 422
    if form.is_stale:
        form.form_errors.append(words.STALE_FORM)
    if _wants_json():
        return _refusal(form), status
    if not is_complete:
        form_pictures.keep(services(), form)
    return _form_page(form), status


@pages.get("/jobs/<job_id>")
def job(job_id: str) -> ResponseReturnValue:
    """Show a job as it is now; a script follows it from there."""
    record = records.job(services(), job_id)
    return render_template(
        "job.html",
        job=record,
        headline=words.headline(record),
        detail=words.detail(record),
        styles=records.styles(services(), job_id),
        content_url=records.address(f"/{job_id}/content?size=512"),
        settings_rows=_settings_rows(record["settings"]),
        terminal_states=TERMINAL,
        fact=words.fact,
        duration=words.duration,
        moment=words.moment,
        asks=words.asks(record),
        vocabulary={
            "headlines": dict(words.HEADLINES),
            "requested": dict(words.REQUESTED),
            "faults": dict(words.FAULTS),
        },
    )


@pages.get("/jobs")
def gallery() -> ResponseReturnValue:
    """Show the jobs, newest first."""
    state = request.args.get("state") or None
    if state is not None and state not in list(JobState):
        raise NotFound(f"There is no state {state[:20]!r}.")
    cursor = request.args.get("cursor") or None
    found, older = records.page(services(), state=state, limit=PER_PAGE, cursor=cursor)
    return render_template(
        "gallery.html",
        jobs=found,
        state=state,
        cursor=cursor,
        states=list(JobState),
        older=older and url_for("pages.gallery", state=state, cursor=older),
        thumbnail=_thumbnail,
        moment=words.moment,
    )


@pages.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> ResponseReturnValue:
    """Cancel from a page without JavaScript."""
    return _asked(job_id, "cancel")


@pages.post("/jobs/<job_id>/finish")
def finish(job_id: str) -> ResponseReturnValue:
    """Make the newest picture the result."""
    return _asked(job_id, "finish")


@pages.post("/jobs/<job_id>/pause")
def pause(job_id: str) -> ResponseReturnValue:
    """Put a job aside."""
    return _asked(job_id, "pause")


@pages.post("/jobs/<job_id>/resume")
def resume(job_id: str) -> ResponseReturnValue:
    """Have a paused job wait for its turn again."""
    records.resume(services(), job_id)
    return redirect(url_for("pages.job", job_id=job_id), 303)


@pages.post("/jobs/<job_id>/retry")
def retry(job_id: str) -> ResponseReturnValue:
    """Run an ended job once more, as a new one; once for each time it is shown."""
    key = form_pictures.page_key(request.form.get("idempotency_key"))
    key = key and f"{key} {job_id}"
    again = _after_first_click(lambda: records.retry(services(), job_id, key)[0])
    return redirect(url_for("pages.job", job_id=again), 303)


@pages.post("/jobs/<job_id>/delete")
def delete(job_id: str) -> ResponseReturnValue:
    """Delete an ended job."""
    jobs.forget(services().database, job_id)
    flash("The picture was deleted.")
    return redirect(url_for("pages.gallery"), 303)


@pages.get("/samples/<name>")
def sample(name: str) -> Response:
    """Give a sample picture, whole or `?size=256`."""
    small = request.args.get("size") == str(SAMPLE_SIZE)
    data, media_type = _small_sample(name) if small else sample_bytes(name)
    answer = Response(data, mimetype=media_type)
    answer.cache_control.public = True
    answer.cache_control.max_age = 86400
    return answer


def error_page(status: int, detail: str = "") -> ResponseReturnValue:
    """Answer an error of a page in words, with a way on."""
    title, advice = words.ERRORS.get(status, ("That did not work", ""))
    return _told(status, title, detail, advice)


def stale_page(error: CSRFError) -> ResponseReturnValue:
    """Answer a button of a page that is older than the visitor's session."""
    job_id = (request.view_args or {}).get("job_id")
    fresh = url_for("pages.job", job_id=job_id) if job_id else url_for("fleet.workers")
    return _told(400, *words.STALE_PAGE, fresh=fresh)


def _told(
    status: int, title: str, detail: str, advice: str, fresh: str | None = None
) -> ResponseReturnValue:
    if _wants_json():
        return {"errors": {}, "message": detail or f"{title}. {advice}"}, status
    page = render_template(
        "error.html",
        status=status,
        title=title,
        detail=detail,
        advice=advice,
        fresh=fresh,
    )
    return page, status


def _asked(job_id: str, what: jobs.Request) -> ResponseReturnValue:
    jobs.request(services().database, job_id, what)
    return redirect(url_for("pages.job", job_id=job_id), 303)


def _form_page(form: forms.PictureForm, source: str | None = None) -> str:
    settings = services().settings
    return render_template(
        "index.html",
        form=form,
        source=source,
        kept={
            name: form_pictures.kept_names(form[f"kept_{name}"].data or [])
            for name in ("content", "style")
        },
        schema=forms.SCHEMA,
        presets={name: forms.preset_values(name) for name in PRESETS},
        meanings=PRESET_MEANINGS,
        content_samples=[one for one in samples() if one.kind == "content"],
        style_samples=[one for one in samples() if one.kind == "style"],
        limits={
            "styles": MAX_STYLES,
            "megabytes": settings.max_file_mb,
            "files": FORM_ACCEPT,
        },
        advanced_open=any(one.errors for one in form.settings_fields(advanced=True)),
    )


def _refusal(form: forms.PictureForm) -> dict[str, Any]:
    """Return why a form was refused; to one that is stale, a token for its next try."""
    errors = {
        name: " ".join(found)
        for name, found in form.errors.items()
        if name and name != form.csrf_token.name
    }
    refusal = {"errors": errors, "message": " ".join(form.form_errors)}
    return {**refusal, "csrf_token": generate_csrf()} if form.is_stale else refusal


def _submit(form: forms.PictureForm) -> str:
    """Submit what was chosen, once; raises UserError naming the field."""
    content, styles = form_pictures.chosen(services(), form)
    given = json.dumps(form.given())
    key = form_pictures.idempotency_key(form, given, [content, *styles])

    def send() -> str:
        form_pictures.rewind([content, *styles])
        return submit_job(services(), content, styles, given, key=key).job_id

    return _after_first_click(send)


def _after_first_click(send: Callable[[], str]) -> str:
    """Return the job that `send` records, or that the click before it did.

    The browser shows the answer to the second of two clicks only. Raises InFlight
    when the first takes long.
    """
    with suppress(InFlight):
        return send()
    if SECOND_CLICKS.acquire(blocking=False):
        try:
            for seconds in PAUSES:
                time.sleep(seconds)
                with suppress(InFlight):
                    return send()
        finally:
            SECOND_CLICKS.release()
    raise InFlight(words.IN_FLIGHT)


def _place(form: forms.PictureForm, error: UserError) -> None:
    """Show a refusal at the field that it is about."""
    # Pictures are named `style[1]` when there are several.
    name = (error.field or "").split("[")[0]
    message = error.message.removeprefix(f"{error.field}: ")
    if name in form:
        form[name].errors = [*form[name].errors, message]
    else:
        form.form_errors.append(error.message)


def _wants_json() -> bool:
    return request.accept_mimetypes.best == "application/json"


@cache
def _small_sample(name: str) -> tuple[bytes, str]:
    data, _ = sample_bytes(name)
    small = images.shrink(images.decode(data), SAMPLE_SIZE)
    return images.encode_jpeg(small), "image/jpeg"


def _thumbnail(job: dict[str, Any]) -> str:
    """Return the address of a small picture of a job, whatever its state."""
    newest = job["result"] or (job["snapshots"] or [None])[-1]
    if newest:
        return str(newest["preview_url"])
    return records.address(f"/{job['id']}/content?size=512")


def _settings_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (schema["title"], words.value(settings[name], schema.get("unit", "")))
        for name, schema in forms.SCHEMA.items()
        # A job of an earlier release does not know the newest settings.
        if name in settings
    ]
