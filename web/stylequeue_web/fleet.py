"""The page of the workers and the queue, where operators do their work."""

from collections.abc import Callable
from functools import wraps

from flask import (
    Blueprint,
    flash,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import Forbidden

from stylequeue_shared import jobs, registry
from stylequeue_shared.errors import UserError
from stylequeue_shared.turns import PRIORITIES
from stylequeue_web import operators, records, words
from stylequeue_web.services import services

pages = Blueprint("fleet", __name__)


@pages.app_context_processor
def who() -> dict[str, object]:
    """Tell every page whether an operator looks at it."""
    return {"operator": operators.signed_in}


@pages.get("/workers")
def workers() -> ResponseReturnValue:
    """Show the workers and the queue; operators find their buttons here."""
    return render_template(
        "workers.html",
        workers=records.workers(services()),
        queue=records.queue(services()),
        operators=operators.exist(),
        standing=words.standing,
        moment=words.moment,
    )


@pages.post("/workers/sign-in")
def sign_in() -> ResponseReturnValue:
    """Remember the visitor as an operator."""
    if operators.sign_in(request.form.get("token", "")):
        return _back()
    flash("That is not the token of STYLEQUEUE_OPERATOR_TOKEN.")
    return make_response(workers(), 401)


@pages.post("/workers/sign-out")
def sign_out() -> ResponseReturnValue:
    """Forget that the visitor is an operator."""
    operators.sign_out()
    return _back()


def for_operators(
    view: Callable[..., ResponseReturnValue],
) -> Callable[..., ResponseReturnValue]:
    """Refuse everybody who has not signed in."""

    @wraps(view)
    def checked(**given: str) -> ResponseReturnValue:
        if not operators.signed_in():
            raise Forbidden("Only operators may do this; they sign in under Workers.")
        return view(**given)

    return checked


@pages.post("/workers/<name>/drain")
@for_operators
def drain(name: str) -> ResponseReturnValue:
    """Have a worker take no more jobs, and maybe hand back the one it runs."""
    hand_back = request.form.get("running") == "hand_back"
    registry.drain(services().database, name, "hand_back" if hand_back else "finish")
    return _back()


@pages.post("/workers/queue/<any(pause, resume):what>")
@for_operators
def queue(what: str) -> ResponseReturnValue:
    """Pause the queue, or have it go on."""
    jobs.pause_queue(services().database, paused=what == "pause")
    return _back()


@pages.post("/jobs/<job_id>/front")
@for_operators
def front(job_id: str) -> ResponseReturnValue:
    """Make a waiting job the next one."""
    jobs.put_in_front(services().database, job_id)
    return redirect(url_for("pages.job", job_id=job_id), 303)


@pages.post("/jobs/<job_id>/priority")
@for_operators
def priority(job_id: str) -> ResponseReturnValue:
    """Move a waiting job to another class."""
    found = [one for one in PRIORITIES if one == request.form.get("priority")]
    if not found:
        raise UserError(f"priority: allowed are {', '.join(PRIORITIES)}")
    jobs.prioritise(services().database, job_id, found[0])
    return redirect(url_for("pages.job", job_id=job_id), 303)


def _back() -> ResponseReturnValue:
    return redirect(url_for("fleet.workers"), 303)
