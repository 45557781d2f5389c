"""The pictures that the form submits: uploads, samples, and those of an earlier try.

A browser does not fill a file field again when a form comes back refused. Without
JavaScript the pictures are therefore kept on the server, and the form names them in
signed fields.
"""

import hashlib
import re
from io import BytesIO

from flask import current_app
from itsdangerous import BadSignature, URLSafeSerializer
from werkzeug.datastructures import FileStorage

from stylequeue_shared.artefacts import original_key
from stylequeue_shared.errors import InFlight, MachineError, NotFound, UserError
from stylequeue_web import submissions
from stylequeue_web.forms import PictureForm
from stylequeue_web.samples import sample_bytes
from stylequeue_web.services import Services

KEY = re.compile(r"[0-9a-f-]{32,36}")


def chosen(
    services: Services, form: PictureForm
) -> tuple[FileStorage, list[FileStorage]]:
    """Return the content picture and the styles. Raises UserError naming the field."""
    contents = [form.content.data] if form.content.data else []
    contents += [
        _kept(services, one, "content") for one in form.kept_content.data or ()
    ]
    if not contents and form.content_sample.data:
        contents = [_sample(form.content_sample.data)]
    styles = [file for file in form.style.data or () if file]
    styles += [_kept(services, one, "style") for one in form.kept_style.data or ()]
    styles += [_sample(name) for name in form.style_sample.data or ()]
    if not contents:
        raise UserError("Choose the picture to paint.", field="content")
    if not styles:
        raise UserError("Choose at least one style picture.", field="style")
    return contents[0], styles


def keep(services: Services, form: PictureForm) -> None:
    """Keep the uploads of a refused form, and have the form name them.

    What cannot be kept has to be chosen again: its field says so.
    """
    uploads = [("content", form.content.data)] if form.content.data else []
    if uploads:
        form.kept_content.data = []
    uploads += [("style", file) for file in form.style.data or () if file]
    for name, file in uploads:
        try:
            sha256 = submissions.keep(services, file, name)
        except (UserError, MachineError):
            again = f"{_name(file)} could not be kept: choose it again."
            form[name].errors = [*form[name].errors, again]
            continue
        token = _signer().dumps([sha256, _name(file)])
        form[f"kept_{name}"].data.append(token)


def _name(file: FileStorage) -> str:
    return (file.filename or "The picture")[-80:]


def kept_names(tokens: list[str]) -> list[tuple[str, str]]:
    """Return each picture that is kept, as the form names it and as the visitor did."""
    names = []
    for token in tokens:
        try:
            names.append((token, _signer().loads(token)[1]))
        except BadSignature:
            continue
    return names


def idempotency_key(
    form: PictureForm, settings: str, files: list[FileStorage]
) -> str | None:
    """Return the key under which this form, sent with these pictures, gives one job.

    A visitor may come back to a form and change it: then it gives another one.
    """
    page = page_key(form.idempotency_key.data)
    if page is None:
        return None
    digest = hashlib.sha256(settings.encode())
    rewind(files)
    for file in files:
        digest.update(hashlib.file_digest(file.stream, "sha256").digest())  # type: ignore[arg-type]
    return f"{page} {digest.hexdigest()}"


def page_key(given: str | None) -> str | None:
    """Return the key that a page was shown with; None if it is none of ours."""
    # No key of the API holds a space.
    return f"page {given}" if given and KEY.fullmatch(given) else None


def rewind(files: list[FileStorage]) -> None:
    """Have the files read from their beginning again.

    Raises InFlight when they were used up by a request that lost its key to another.
    """
    for file in files:
        if file.stream.closed:
            raise InFlight("The pictures were submitted already.")
        file.stream.seek(0)


def _kept(services: Services, token: str, field: str) -> FileStorage:
    try:
        sha256, name = _signer().loads(token)
        data = services.store.get(original_key(sha256))
    except (BadSignature, NotFound):
        raise UserError(
            "The picture was kept for an hour only; choose it again.", field=field
        ) from None
    return FileStorage(BytesIO(data), filename=name)


def _sample(name: str) -> FileStorage:
    """Return a sample as if the visitor had uploaded it."""
    data, media_type = sample_bytes(name)
    return FileStorage(BytesIO(data), filename=name, content_type=media_type)


def _signer() -> URLSafeSerializer:
    return URLSafeSerializer(current_app.secret_key or "", salt="kept pictures")
