"""`stylequeue render`: the engine alone, without server, queue or database."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from stylequeue_shared import images
from stylequeue_shared.decoding import decode, inspect
from stylequeue_shared.errors import InvalidSetting
from stylequeue_shared.job_settings import (
    JobSettings,
    check_fits,
    complete_settings,
    style_fields,
)
from stylequeue_shared.settings import Settings
from stylequeue_worker.devices import places

if TYPE_CHECKING:
    from stylequeue_worker.engine.transfer import Step

JPEG = (".jpg", ".jpeg")
# What a file may be called. A JPEG holds what an 8-bit PNG would, less its text.
SUFFIXES = {
    "png": (".png", *JPEG),
    "png16": (".png",),
    "tiff16": (".tif", ".tiff"),
}
# As a shell reports a program that Ctrl-C ended.
INTERRUPTED = 130


def render(
    settings: Settings,
    content: Path,
    styles: Sequence[Path],
    output: Path,
    given: Mapping[str, Any],
    save_every: int | None = None,
) -> int:
    """Paint one picture into `output`, and return the exit status.

    With `save_every` the picture is saved beside it every so many steps. Ctrl-C keeps
    the newest picture. Raises InvalidSetting and InvalidPicture that name the field.
    """
    job = complete_settings(given, styles=len(styles))
    _check_output(output, job)
    photo, *paintings = _read(settings, job, content, styles)
    place = places(settings)[0]
    # Before torch is imported: it pins this process to one GPU, as a worker is.
    os.environ.update(place.environment)
    device = place.environment["STYLEQUEUE_DEVICE"]
    return _paint(
        settings.model_copy(update={"device": device}),
        job,
        photo,
        paintings,
        output,
        save_every,
    )


def _paint(
    settings: Settings,
    job: JobSettings,
    content: Image.Image,
    styles: Sequence[Image.Image],
    output: Path,
    save_every: int | None,
) -> int:
    from stylequeue_worker.pictures import description
    from stylequeue_worker.studio import Studio

    studio = Studio(settings)
    text = description(job, studio.made_with)
    console = Console(stderr=True)
    console.print(f"seed {job.seed}, on {studio.device_name}")
    if expected := studio.estimate(content, styles, job):
        console.print(str(expected))
    step = None
    try:
        with _bar(console) as bar:
            task = bar.add_task("", total=job.steps, loss="")
            for step in studio.paint(content, styles, job):
                bar.update(task, completed=step.number, loss=f"{step.loss:.4g}")
                if save_every and step.number % save_every == 0:
                    between = output.with_stem(f"{output.stem}-{step.number:06d}")
                    _save(step, content, job, between, text)
    except KeyboardInterrupt:
        if step is None:
            console.print("Stopped before the first step; nothing was saved.")
            return INTERRUPTED
        _save(step, content, job, output, text)
        console.print(f"Stopped after step {step.number}; its picture is {output}")
        return INTERRUPTED
    assert step is not None
    _save(step, content, job, output, text)
    console.print(f"{output}")
    return 0


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
        console=console,
    )


def _read(
    settings: Settings, job: JobSettings, content: Path, styles: Sequence[Path]
) -> list[Image.Image]:
    """Check all pictures, as a submission does, and read them."""
    fields = ["content", *style_fields(len(styles))]
    paths = [content, *styles]
    found = [
        inspect(
            path,
            field=field,
            max_bytes=settings.max_file_bytes,
            max_pixels=settings.max_pixels,
        )
        for field, path in zip(fields, paths, strict=True)
    ]
    sizes = [(picture.width, picture.height) for picture in found]
    check_fits(job, sizes[0], sizes[1:])
    photo = decode(content, field="content", keep_alpha=job.keep_alpha)
    paintings = zip(styles, fields[1:], strict=True)
    return [photo, *(decode(path, field=field) for path, field in paintings)]


def _check_output(output: Path, job: JobSettings) -> None:
    """Refuse now what could not be written after an hour of painting."""
    suffixes = SUFFIXES[job.result_format]
    if job.keep_alpha:
        suffixes = tuple(suffix for suffix in suffixes if suffix not in JPEG)
    if output.suffix.lower() not in suffixes:
        raise InvalidSetting(
            f"output: found {output.name!r}; with result_format {job.result_format}"
            f"{' and keep_alpha' if job.keep_alpha else ''} its name must end with "
            f"{', '.join(suffixes)}",
            field="output",
        )
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise InvalidSetting(
            f"output: {output} cannot be written; give a file in a folder of yours",
            field="output",
        )


def _save(
    step: "Step",
    content: Image.Image,
    job: JobSettings,
    path: Path,
    text: Mapping[str, str],
) -> None:
    """Write the file whole or not at all."""
    from stylequeue_worker.pictures import encode_result, finish

    if path.suffix.lower() in JPEG:
        data = images.encode_jpeg(finish(step.image, content, job), 95)
    else:
        data = encode_result(step.image, content, job, text)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
