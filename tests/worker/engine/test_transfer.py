import io
import itertools

import pytest
import torch
from PIL import Image

from stylequeue_shared import plans
from stylequeue_shared.errors import NumericalError
from stylequeue_shared.job_settings import complete_settings
from stylequeue_shared.plans import Plan, peak_bytes
from stylequeue_web.samples import sample_bytes, samples
from stylequeue_worker.engine import transfer as transfers
from stylequeue_worker.engine.bands import Forward
from stylequeue_worker.engine.network import build_network
from stylequeue_worker.engine.objective import Objective
from stylequeue_worker.engine.transfer import first_picture, transfer
from stylequeue_worker.pictures import content_tensor, style_tensor
from stylequeue_worker.weights import load_weights
from tests.worker.engine.tiny import CPU, picture, settings, tiny_network

CONTENT, STYLE = picture(40, 32, 1), picture(32, 48, 2)
OTHER_STYLE = 0.3 * picture(32, 32, 5)


@pytest.fixture(scope="module")
def network():
    return tiny_network()


def last(network, styles=(STYLE,), **given):
    job = settings(styles=len(styles), **given)
    return list(transfer(network, CONTENT, styles, job))[-1]


def test_there_are_as_many_steps_as_asked_numbered_from_1(network):
    steps = list(transfer(network, CONTENT, [STYLE], settings(steps=4)))
    assert [step.number for step in steps] == [1, 2, 3, 4]


def test_nothing_is_computed_before_it_is_asked_for(network, monkeypatch):
    passes = []
    band = Forward.band
    monkeypatch.setattr(
        Forward, "band", lambda *given: passes.append(1) or band(*given)
    )
    steps = transfer(network, CONTENT, [STYLE], settings(steps=50))
    assert len(passes) == 0
    next(steps)
    targets = 2
    assert len(passes) == targets + 1
    next(steps)
    assert len(passes) == targets + 2


def test_losses_are_of_the_picture_before_the_update_and_the_picture_is_after(network):
    job = settings(steps=3, tv_weight=10)
    steps = list(transfer(network, CONTENT, [STYLE], job))
    objective = Objective(network, CONTENT, [STYLE], job, steps[0].plan)
    before = first_picture(CONTENT, [STYLE], job)
    for step in steps:
        style, content, tv = (float(loss) for loss in objective.gradient(before)[0])
        assert (step.style_loss, step.content_loss, step.tv_loss) == pytest.approx(
            (style, content, tv), rel=1e-6
        )
        assert step.loss == pytest.approx(style + content + tv, rel=1e-6)
        before = step.image


def test_a_step_may_be_kept_its_picture_does_not_change(network):
    for optimizer in ("lbfgs", "adam"):
        job = settings(steps=4, optimizer=optimizer)
        kept = [
            (step.image, step.image.clone())
            for step in transfer(network, CONTENT, [STYLE], job)
        ]
        assert all(torch.equal(image, copy) for image, copy in kept)
        assert not any(image.requires_grad for image, _ in kept)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_every_picture_is_within_0_and_1(network, optimizer):
    job = settings(steps=20, optimizer=optimizer)
    for step in transfer(network, CONTENT, [STYLE], job):
        assert step.image.shape == CONTENT.shape
        assert 0 <= step.image.min() <= step.image.max() <= 1


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_same_seed_gives_the_same_picture_bit_for_bit(network, optimizer):
    first = last(network, steps=12, optimizer=optimizer)
    second = last(network, steps=12, optimizer=optimizer)
    assert torch.equal(first.image, second.image)
    assert first.loss == second.loss


BASE = {"steps": 12, "init": "content", "content_weight": 1e4}


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 13},
        {"content_layers": ["relu2_2"]},
        {"style_layers": ["conv1_1", "conv4_1"]},
        {"content_weight": 1},
        {"style_weight": 1e3},
        {"tv_weight": 1e5},
        {"init": "noise"},
        {"init": "style"},
        {"optimizer": "adam"},
        {"pooling": "average"},
    ],
    ids=lambda change: next(iter(change.items())).__repr__(),
)
def test_every_setting_changes_the_picture(network, change):
    plain, changed = last(network, **BASE), last(network, **{**BASE, **change})
    assert not torch.allclose(plain.image, changed.image, atol=1e-5)


def test_the_seed_changes_a_picture_that_starts_from_noise(network):
    assert not torch.equal(last(network, seed=1).image, last(network, seed=2).image)


def test_the_blend_changes_the_picture(network):
    styles = (STYLE, OTHER_STYLE)
    even = last(network, styles, **BASE)
    uneven = last(network, styles, **BASE, style_blend=[1, 4])
    assert not torch.allclose(even.image, uneven.image, atol=1e-5)


def test_a_style_of_weight_0_has_no_part(network):
    blended = last(network, (STYLE, OTHER_STYLE), **BASE, style_blend=[1, 0])
    alone = last(network, (STYLE,), **BASE)
    torch.testing.assert_close(blended.image, alone.image, rtol=0, atol=1e-4)


def test_noise_is_uniform_and_follows_from_the_seed_alone():
    content = picture(64, 64, 1)
    noise = first_picture(content, [STYLE], settings(seed=9))
    generator = torch.Generator().manual_seed(9)
    assert torch.equal(noise, torch.rand(1, 3, 64, 64, generator=generator))
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.02)


def test_a_start_from_the_content_has_no_content_loss(network):
    steps = transfer(network, CONTENT, [STYLE], settings(init="content"))
    assert next(steps).content_loss == 0


def test_a_start_from_the_style_is_its_middle_in_the_contents_shape():
    # White bands left and right, which a square result has no place for.
    style = torch.ones(1, 3, 20, 60)
    style[..., 20:40] = 0.25
    start = first_picture(torch.zeros(1, 3, 40, 40), [style], settings(init="style"))
    assert start.shape == (1, 3, 40, 40)
    torch.testing.assert_close(start, torch.full_like(start, 0.25), rtol=0, atol=1e-5)


def test_a_start_from_the_style_takes_the_style_of_most_weight():
    job = settings(styles=2, init="style", style_blend=[1, 2])
    dark, light = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert first_picture(CONTENT, [dark, light], job).mean() > 0.99


@pytest.mark.parametrize("where", ["content", "style"])
def test_a_loss_that_is_not_finite_is_an_error_that_says_so(network, where):
    broken = torch.full((1, 3, 32, 32), float("nan"))
    content, style = (broken, STYLE) if where == "content" else (CONTENT, broken)
    steps = transfer(network, content, [style], settings(init="noise"))
    with pytest.raises(NumericalError, match=f"step 1: the {where} loss"):
        next(steps)


@pytest.mark.parametrize(("init", "steps"), [("noise", 60), ("content", 40)])
def test_a_job_converges_with_the_bundled_weights(init, steps):
    network = build_network(load_weights("bundled"), CPU)
    # Smooth pictures, as photographs are.
    content, style = (
        torch.nn.functional.interpolate(small, (48, 64), mode="bicubic").clamp(0, 1)
        for small in (picture(8, 8, 1), picture(12, 12, 2))
    )
    job = settings(init=init, steps=steps)
    losses = [step.loss for step in transfer(network, content, [style], job)]
    assert losses[-1] < 0.02 * max(losses)
    assert losses[-1] < 1.5 * min(losses)


@pytest.mark.parametrize("name", [one.name for one in samples() if one.kind == "style"])
def test_quick_approaches_whatever_style(name):
    # The cat lies on a hilltop of the night's loss: no curvature, and steep later.
    job = complete_settings(
        {"preset": "quick", "image_size": 64, "steps": 60, "seed": 1}, styles=1
    )
    content, style = sample("cat"), sample(name)
    steps = transfer(
        build_network(load_weights("bundled"), CPU),
        content_tensor(content, job),
        [style_tensor(style, job, (64, 43))],
        job,
    )
    losses = [step.loss for step in steps]
    assert losses[-1] < 0.02 * losses[0]
    rises = sum(later > earlier for earlier, later in itertools.pairwise(losses))
    assert rises < 6


def sample(name):
    with Image.open(io.BytesIO(sample_bytes(name)[0])) as image:
        return image.convert("RGB")


def test_a_run_that_holds_few_bands_gives_memory_back_before_each_update(
    network, monkeypatch
):
    monkeypatch.setattr(plans, "BAND_PIXELS", 512)
    given_back = []
    monkeypatch.setattr(
        transfers, "give_back_freed_memory", lambda: given_back.append(1)
    )
    job = settings(steps=3)
    list(transfer(network, CONTENT, [STYLE], job))
    assert given_back == []
    few = peak_bytes(job, (32, 40), Plan(16, 1, False, 5))
    steps = list(transfer(network, CONTENT, [STYLE], job, budget=few))
    assert steps[0].plan.held == 1
    assert given_back == [1, 1, 1]
