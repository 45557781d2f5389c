"""The pages: the submission form, a job, the gallery, and the pages of errors.

All of them work without JavaScript; scripts add previews, progress and live pictures.
"""

import json
from functools import cache
from io import BytesIO
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
from werkzeug.datastructures import FileStorage

from stylequeue_shared import images, jobs
from stylequeue_shared.errors import NotFound, UserError
from stylequeue_shared.job_settings import MAX_STYLES, PRESET_MEANINGS, PRESETS
from stylequeue_shared.models import TERMINAL, JobState
from stylequeue_web import forms, records, words
from stylequeue_web.samples import sample_bytes, samples
from stylequeue_web.services import services
from stylequeue_web.submissions import submit as submit_job

PER_PAGE = 24
# The only smaller size that samples are made in.
SAMPLE_SIZE = 256

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
    if form.validate():
        try:
            job_id = _submit(form)
        except UserError as error:
            _place(form, error)
        else:
            page = url_for("pages.job", job_id=job_id)
            if _wants_json():
                return {"location": page}, 201
            return redirect(page, 303)
    if _wants_json():
        errors = {name: " ".join(found) for name, found in form.errors.items() if name}
        return {"errors": errors, "message": " ".join(form.form_errors)}, 422
    return _form_page(form), 422


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
        content_url=f"/api/v1/jobs/{job_id}/content?size=512",
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
    """Run an ended job once more, as a new one."""
    again = records.retry(services(), job_id)
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
    if request.accept_mimetypes.best == "application/json":
        return {"errors": {}, "message": detail or f"{title}. {advice}"}, status
    return (
        render_template(
            "error.html", status=status, title=title, detail=detail, advice=advice
        ),
        status,
    )


def _asked(job_id: str, what: jobs.Request) -> ResponseReturnValue:
    jobs.request(services().database, job_id, what)
    return redirect(url_for("pages.job", job_id=job_id), 303)


def _form_page(form: forms.PictureForm, source: str | None = None) -> str:
    settings = services().settings
    return render_template(
        "index.html",
        form=form,
        source=source,
        schema=forms.SCHEMA,
        presets={name: forms.preset_values(name) for name in PRESETS},
        meanings=PRESET_MEANINGS,
        content_samples=[one for one in samples() if one.kind == "content"],
        style_samples=[one for one in samples() if one.kind == "style"],
        limits={"styles": MAX_STYLES, "megabytes": settings.max_file_mb},
        advanced_open=any(one.errors for one in form.settings_fields(advanced=True)),
    )


def _submit(form: forms.PictureForm) -> str:
    """Submit what was chosen, samples included; raises UserError naming the field."""
    content = [form.content.data] if form.content.data else []
    style = [file for file in form.style.data or () if file]
    if not content and form.content_sample.data:
        content = [_sample(form.content_sample.data)]
    style += [_sample(name) for name in form.style_sample.data or ()]
    if not content:
        raise UserError("Choose the picture to paint.", field="content")
    if not style:
        raise UserError("Choose at least one style picture.", field="style")
    given = json.dumps(form.given())
    return submit_job(services(), content[0], style, given).job_id


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


def _sample(name: str) -> FileStorage:
    """Return a sample as if the visitor had uploaded it."""
    data, media_type = sample_bytes(name)
    return FileStorage(BytesIO(data), filename=name, content_type=media_type)


def _thumbnail(job: dict[str, Any]) -> str:
    """Return the address of a small picture of a job, whatever its state."""
    newest = job["result"] or (job["snapshots"] or [None])[-1]
    if newest:
        return str(newest["preview_url"])
    return f"/api/v1/jobs/{job['id']}/content?size=512"


def _settings_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (schema["title"], words.value(settings[name], schema.get("unit", "")))
        for name, schema in forms.SCHEMA.items()
        # A job of an earlier release does not know the newest settings.
        if name in settings
    ]
