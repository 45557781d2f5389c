"""What a job reads as on a page; `static/js/words.js` says it while it is watched.

The tables here are handed to that script; only the few rules below are told twice.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from stylequeue_shared.estimates import about

HEADLINES: Mapping[str, str] = {
    "queued": "Waiting its turn",
    "running": "Painting …",
    "paused": "Paused",
    "succeeded": "Finished",
    "failed": "It failed",
    "cancelled": "Cancelled",
}
# What a running job was asked to do, until it does it.
REQUESTED: Mapping[str, str] = {
    "cancel": "Cancelling …",
    "finish": "Finishing …",
    "pause": "Pausing …",
}
FAULTS: Mapping[str, str] = {
    "user": "Something about the pictures or settings: "
    "change them and submit them anew.",
    "machine": "Not your doing: the machine could not do it. A retry may help.",
    "ours": "Not your doing: a defect of ours. "
    "A retry may help; if it does not, please report it.",
}
# Title and advice of an error page, by status.
ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("That request made no sense", "Go back and try it once more."),
    403: ("That is not allowed", "Start from a page of this site."),
    404: ("There is nothing here", "It may have been deleted, or have expired."),
    405: ("That cannot be done here", "Start from a page of this site."),
    409: ("Not in this state", "Look at the job again: it may have moved on."),
    413: ("The pictures are too large", "Make them smaller and try again."),
    429: ("That was a little fast", "Wait a minute, then try again."),
    500: ("Something broke on our side", "It has been logged. A retry may help."),
    503: ("Not just now", "Please try again in a little while."),
}

# Title, text and advice where a page is older than the visitor's session.
STALE_PAGE = (
    "This page was too old",
    "Nothing was changed.",
    "Reload the page, then press the button again.",
)
STALE_FORM = (
    "This page was too old and has been reloaded; what you entered is still here. "
    "Please press Start painting again. If this comes again, allow cookies."
)
IN_FLIGHT = "These pictures are being submitted already; the gallery will show the job."


def headline(job: Mapping[str, Any]) -> str:
    """Return a job's state as a heading."""
    return REQUESTED.get(job["requested"] or "", HEADLINES[job["state"]])


def asks(job: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what may be asked of a job just now, as `words.js` does."""
    found = []
    if job["state"] == "paused" or job["requested"] == "pause":
        found.append("resume")
    elif job["state"] in ("queued", "running") and job["requested"] is None:
        found.append("pause")
    if job["requested"] in (None, "pause") and (
        job["snapshots"] or (job["state"] == "running" and job["progress"])
    ):
        found.append("finish")
    return (*found, "cancel")


def standing(worker: Mapping[str, Any]) -> tuple[str, str]:
    """Return how a worker's state looks, as that of a job would, and what it is."""
    if worker["refuses"] or worker["drain"]:
        return ("queued", "Drains") if worker["job"] else ("failed", "Takes no jobs")
    return ("running", "Paints") if worker["job"] else ("idle", "Idle")


def detail(job: Mapping[str, Any]) -> str:
    """Return what there is to add to the heading."""
    if job["state"] == "queued":
        parts = [_place(job["queue_position"]), _expected(job, " once it starts")]
        return ", ".join(filter(None, parts))
    if job["state"] == "running" and not job["progress"]:
        return ", ".join(filter(None, ["Getting ready", _expected(job, " in all")]))
    if job["state"] == "paused" and job["progress"]:
        return f"after step {job['progress']['step']}"
    if job["started_at"] and job["finished_at"]:
        took = instant(job["finished_at"]) - instant(job["started_at"])
        return f"in {duration(took.total_seconds())}"
    return ""


def _expected(job: Mapping[str, Any], when: str) -> str:
    """Return how long it is expected to take, until its first step tells better."""
    if not job["estimate"] or job["progress"]:
        return ""
    return f"about {about(job['estimate']['seconds'])}{when}"


def _place(position: int | None) -> str:
    if not position:
        return ""
    return "next in line" if position == 1 else f"number {position} in line"


def duration(seconds: float | None) -> str:
    """Write a number of seconds for people."""
    if seconds is None:
        return "–"
    # As JavaScript rounds, so that a reload does not change it.
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def instant(text: str) -> datetime:
    """Read a time of the job JSON."""
    return datetime.fromisoformat(text)


def moment(text: str) -> str:
    """Write a time of the job JSON for people; scripts make it local."""
    return f"{instant(text).astimezone(UTC):%d %b %Y, %H:%M} UTC"


def fact(name: str, found: Any) -> tuple[str, str]:
    """Write what a job was made with, name and value, as words.js does."""
    label = name.removesuffix("_bytes").replace("_", " ")
    if name.endswith("_bytes") and found is not None:
        return label, f"{int(found / 1e6 + 0.5)} MB"
    if isinstance(found, Mapping):
        parts = (" ".join(fact(part, one)) for part, one in found.items())
        return label, ", ".join(parts)
    return label, value(found)


def value(setting: Any, unit: str = "") -> str:
    """Write the value of a setting."""
    if setting is None:
        return "–"
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    if isinstance(setting, list | tuple):
        return ", ".join(value(one) for one in setting)
    if isinstance(setting, float):
        return f"{setting:.12g}"
    return f"{setting} {unit}".strip()
