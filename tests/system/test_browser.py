"""The pages in a real browser, on a real installation with its worker."""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from tests.system.browser import Visit, chromium
from tests.system.test_up import Up

expect.set_options(timeout=30_000)
OPERATOR_TOKEN = "a-token-of-operators"
LONG = {"steps": "5000", "snapshot_every": "50"}
PHONE = {"viewport": {"width": 360, "height": 780}, "is_mobile": True}

Visitor = Callable[..., Visit]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("browser") / "home"
    given = {
        "STYLEQUEUE_THREADS": "1",
        "STYLEQUEUE_OPERATOR_TOKEN": OPERATOR_TOKEN,
    }
    up = Up(home, standing_in=(), **given).ready()
    yield up.address
    assert up.end() == 0, up.said


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    visits: list[Visit] = []

    def visit(**options: Any) -> Visit:
        visits.append(Visit(browser, address, **options))
        return visits[-1]

    yield visit
    for one in visits:
        one.context.close()
    assert not [wrong for one in visits for wrong in one.wrong]


def choose_samples(page: Page, form: str = "/") -> None:
    page.goto(form)
    page.get_by_text("Chelsea the cat").click()
    page.get_by_text("Whirling night").click()
    expect(page.locator(".picture")).to_have_count(2)


def submit(page: Page, size: int = 64, **settings: str) -> str:
    """Submit samples by the form and return the address of the job's page."""
    choose_samples(page)
    page.get_by_label("Size").first.fill(str(size))
    page.get_by_text("Advanced", exact=True).click()
    for name, value in settings.items():
        page.locator(f"[name={name}]").fill(value)
    page.get_by_role("button", name="Start painting").click()
    page.wait_for_url("**/jobs/*")
    return page.url


def until(page: Page, state: str, minutes: float = 2) -> None:
    page.wait_for_selector(f"#job[data-state={state}]", timeout=60_000 * minutes)


def end(page: Page) -> None:
    page.get_by_role("button", name="Cancel").click()
    until(page, "cancelled")


def test_samples_become_a_picture_that_is_watched_compared_and_downloaded(
    visitor: Visitor, tmp_path: Path
) -> None:
    page = visitor().page
    url = submit(page, steps="160", snapshot_every="10")
    # A snapshot arrives while the job still runs.
    page.wait_for_selector("[data-state=running] #painted[src*='/snapshots/']")
    assert "size=512" in page.locator("#painted").get_attribute("src")
    expect(page.locator("#n-step")).to_have_text(re.compile(r"^\d+ of 160$"))
    until(page, "succeeded")
    expect(page.locator("#caption")).to_contain_text("The finished picture, 64 ×")
    expect(page.locator("#painted")).to_have_attribute("src", re.compile("/result"))
    expect(page.locator("#loss-table tbody tr")).to_have_count(16)
    expect(page.locator("#chart polyline")).to_have_count(2)
    expect(page.get_by_role("progressbar")).to_have_count(0)

    page.get_by_label("From first to last step").press("Home")
    expect(page.locator("#caption")).to_have_text("After step 10")
    expect(page.locator("#painted")).to_have_attribute(
        "src", re.compile("/snapshots/10")
    )

    page.get_by_text("Compare", exact=True).click()
    divider = page.get_by_label("How much of the original to show")
    divider.press("Home")
    divider.press("ArrowRight")
    assert "1%" in page.locator("#frame").get_attribute("style")
    assert page.locator("#original").evaluate("one => one.naturalWidth") > 0

    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    download.value.save_as(tmp_path / "result.png")
    with Image.open(BytesIO((tmp_path / "result.png").read_bytes())) as result:
        assert (result.format, max(result.size)) == ("PNG", 64)
        assert any('"seed"' in value for value in result.text.values())  # type: ignore[attr-defined]

    # Another visitor, without JavaScript even, sees the same.
    what = (
        "#headline, #chip, #detail, #n-step, #n-speed, #retry-action button, "
        "#attempt, #made-with dt, #made-with dd"
    )
    seen = page.locator(what)
    other = visitor(java_script_enabled=False).page
    other.goto(url)
    same = other.locator(what)
    assert seen.count() > 10
    assert same.all_text_contents() == seen.all_text_contents()
    expect(other.locator("#painted")).to_have_attribute("src", re.compile("/result"))


def test_a_job_that_waits_says_how_long_it_will_take_with_and_without_scripts(
    visitor: Visitor,
) -> None:
    page, second, plain = (
        visitor().page,
        visitor().page,
        visitor(java_script_enabled=False).page,
    )
    submit(page, **LONG)
    until(page, "running")
    url = submit(second, **LONG)
    expected = re.compile(r"^next in line, about \d+ (s|min|h) once it starts$")
    expect(second.locator("#detail")).to_have_text(expected)
    plain.goto(url)
    said = second.locator("#detail").text_content()
    assert plain.locator("#detail").text_content() == said
    end(second)
    end(page)


def test_a_job_is_cancelled_retried_and_deleted(visitor: Visitor) -> None:
    page = visitor().page
    first = submit(page, **LONG)
    until(page, "running")
    end(page)
    expect(page.locator("#headline")).to_have_text("Cancelled")
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: url != first)
    expect(page.locator(".settings-list").first).to_contain_text("5000")
    end(page)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#confirm-delete")).to_be_hidden()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("status")).to_have_text("The picture was deleted.")


def test_a_job_is_paused_goes_on_and_is_finished_with_what_there_is(
    visitor: Visitor,
) -> None:
    page, plain = visitor().page, visitor(java_script_enabled=False).page
    url = submit(page, **{**LONG, "snapshot_every": "50"})
    page.wait_for_selector("[data-state=running] #painted[src*='/snapshots/']")

    def same_without_scripts() -> None:
        plain.goto(url)
        what = "#headline, #chip, #detail, [data-ask]:visible button"
        seen = page.locator(what).all_text_contents()
        assert plain.locator(what).all_text_contents() == seen

    page.get_by_role("button", name="Pause").click()
    until(page, "paused")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    expect(page.locator("#detail")).to_have_text(re.compile(r"^after step \d+$"))
    same_without_scripts()
    stopped = int(page.locator("#detail").text_content().split()[-1])
    page.get_by_role("button", name="Go on").click()
    until(page, "running")
    page.wait_for_function(
        "at => parseInt(document.querySelector('#n-step').textContent) > at",
        arg=stopped,
    )
    expect(page.locator("#attempt")).to_have_text("2")
    page.get_by_role("button", name="Finish with this picture").click()
    until(page, "succeeded")
    expect(page.locator("#caption")).to_contain_text("The finished picture")
    same_without_scripts()


def test_operators_pause_the_queue_and_put_a_job_in_front(visitor: Visitor) -> None:
    visit = visitor()
    page = visit.page
    page.goto("/workers")
    page.get_by_text("For operators").click()
    page.get_by_label("Token").fill("not the token of theirs")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("status")).to_contain_text("not the token")
    page.get_by_text("For operators").click()
    page.get_by_label("Token").fill(OPERATOR_TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".worker")).to_have_count(1)
    page.get_by_role("button", name="Pause the queue").click()
    expect(page.locator(".lead")).to_contain_text("none starts")
    first, second = submit(page, **LONG), submit(page, **LONG)
    expect(page.locator("#detail")).to_contain_text("number 2 in line")
    page.get_by_role("button", name="Put in front").click()
    page.wait_for_url(second)
    expect(page.locator("#detail")).to_contain_text("next in line")
    page.get_by_label("Priority").select_option("high")
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_label("Priority")).to_have_value("high")
    page.goto("/workers")
    page.get_by_role("button", name="Let the queue go on").click()
    page.goto(second)
    until(page, "running")
    end(page)
    page.goto(first)
    end(page)
    visit.forgive("status of 401")


def test_a_refused_submission_keeps_the_pictures_and_says_where(
    visitor: Visitor,
) -> None:
    visit = visitor()
    page = visit.page
    choose_samples(page)
    steps = page.locator("[name=steps]")
    steps.fill("0")
    page.get_by_role("button", name="Start painting").click()
    expect(page.locator("#steps-error")).to_be_visible()
    expect(steps).to_be_focused()
    steps.fill("3000")
    expect(page.locator("#steps-error")).to_be_hidden()
    # Only the server knows that these would be more than 100 snapshots.
    page.get_by_role("button", name="Start painting").click()
    expect(page.locator("#snapshot_every-error")).to_contain_text("at least 30")
    expect(page.locator("[name=snapshot_every]")).to_be_focused()
    expect(page.locator(".picture")).to_have_count(2)
    broken = {"name": "a.png", "mimeType": "image/png", "buffer": b"not a picture"}
    page.locator("#content").set_input_files(broken)
    page.locator("[name=snapshot_every]").fill("50")
    page.get_by_role("button", name="Start painting").click()
    expect(page.locator("#content-error")).to_be_visible()
    expect(page.locator(".picture")).to_have_count(2)
    visit.forgive("status of 422")
    visit.forgive("blob:")


def test_a_form_that_is_older_than_its_cookie_is_submitted_all_the_same(
    visitor: Visitor,
) -> None:
    visit = visitor()
    page = visit.page
    choose_samples(page)
    page.locator("[name=image_size]").fill("48")
    page.locator("[name=steps]").fill("5")
    visit.context.clear_cookies()
    with page.expect_response(lambda answer: answer.status == 400):
        page.get_by_role("button", name="Start painting").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator(".settings-list").first).to_contain_text("48")
    visit.forgive("status of 400")


def test_a_browser_that_keeps_no_cookies_is_told_so(visitor: Visitor) -> None:
    visit = visitor()
    page = visit.page
    choose_samples(page)

    def without_cookies(route: Route) -> None:
        visit.context.clear_cookies()
        route.continue_()

    page.route("**/", without_cookies)
    page.get_by_role("button", name="Start painting").click()
    expect(page.locator("#form-error")).to_contain_text("allow cookies")
    # The pictures are still there, so that it works as soon as cookies do.
    expect(page.locator(".picture")).to_have_count(2)
    page.unroute("**/")
    page.get_by_role("button", name="Start painting").click()
    page.wait_for_url("**/jobs/*")
    visit.forgive("status of 400")


def test_an_old_form_without_javascript_keeps_its_pictures(visitor: Visitor) -> None:
    visit = visitor(java_script_enabled=False)
    page = visit.page
    page.goto("/")
    file = {"name": "mine.png", "mimeType": "image/png", "buffer": saved_picture()}
    page.locator("#content").set_input_files(file)
    page.locator("label[for=sample-night]").click()
    page.locator("[name=image_size]").fill("48")
    page.locator("[name=steps]").fill("5")
    visit.context.clear_cookies()
    page.get_by_role("button", name="Start painting").click()
    expect(page.locator("#form-error")).to_contain_text("too old")
    expect(page.get_by_label("mine.png, from your last try")).to_be_checked()
    expect(page.locator("[name=image_size]")).to_have_value("48")
    page.get_by_role("button", name="Start painting").click()
    page.wait_for_url("**/jobs/*")
    visit.forgive("status of 400")


def saved_picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 48), "teal").save(file, "PNG")
    return file.getvalue()


def test_more_styles_can_be_added_weighed_and_removed(visitor: Visitor) -> None:
    page = visitor().page
    choose_samples(page)
    page.get_by_text("Printed waves").click()
    weights = page.get_by_label("Weight", exact=True)
    expect(weights).to_have_count(2)
    weights.first.fill("3")
    expect(page.locator("[name=style_blend]")).to_have_value("3, 1")
    page.get_by_role("button", name="Remove style picture Whirling night").click()
    expect(weights).to_have_count(0)
    expect(page.locator("[name=style_blend]")).to_have_value("")


def test_a_preset_writes_its_values_and_leaves_the_others(visitor: Visitor) -> None:
    page = visitor().page
    page.goto("/")
    size, steps = page.locator("[name=image_size]"), page.locator("[name=steps]")
    expect(steps).to_have_value("150")
    size.fill("96")
    page.get_by_text("Gatys", exact=True).click()
    expect(steps).to_have_value("700")
    expect(size).to_have_value("96")
    checked = page.locator("[name=content_layers]:checked")
    assert checked.evaluate_all("all => all.map(one => one.value)") == ["relu4_2"]


def test_a_pasted_and_a_dropped_picture_are_taken(visitor: Visitor) -> None:
    page = visitor().page
    page.goto("/")
    page.evaluate(
        """async () => {
            const bytes = await (await fetch("/samples/cat")).blob();
            const files = new DataTransfer();
            files.items.add(new File([bytes], "cat.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            const paste = { ...options, clipboardData: files };
            document.body.dispatchEvent(new ClipboardEvent("paste", paste));
            const zone = document.querySelector("[data-zone=style] .drop");
            zone.dispatchEvent(
                new DragEvent("drop", { ...options, dataTransfer: files }));
        }"""
    )
    expect(page.locator("[data-zone=content] .picture")).to_have_count(1)
    expect(page.locator("[data-zone=style] .picture")).to_have_count(1)


def test_the_keyboard_alone_is_enough(visitor: Visitor) -> None:
    page = visitor().page
    page.goto("/")

    def tab_to(target: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches('{target}')"):
                return
        raise AssertionError(f"no way to {target} by the Tab key")

    tab_to("[name=content_sample]")
    page.keyboard.press("Space")
    expect(page.locator("[data-zone=content] .picture")).to_have_count(1)
    tab_to("[name=style_sample]")
    page.keyboard.press("Space")
    expect(page.locator("[data-zone=style] .picture")).to_have_count(1)
    tab_to("[name=image_size]")
    page.keyboard.type("48")
    tab_to("[name=steps]")
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/*")
    until(page, "succeeded")


def test_the_form_works_without_javascript(visitor: Visitor) -> None:
    visit = visitor(java_script_enabled=False)
    page = visit.page
    page.goto("/")
    page.get_by_role("button", name="Start painting").click()
    expect(page.locator("#content-error")).to_have_text("Choose the picture to paint.")
    page.locator("label[for=sample-cat]").click()
    page.locator("label[for=sample-night]").click()
    page.locator("[name=image_size]").fill("48")
    page.locator("[name=steps]").fill("5")
    page.get_by_role("button", name="Start painting").click()
    page.wait_for_url("**/jobs/*")
    visit.forgive("status of 422")


def test_a_lost_connection_is_told_and_overcome(visitor: Visitor) -> None:
    visit = visitor()
    page = visit.page
    submit(page, **LONG)
    until(page, "running")
    visit.context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("cannot be reached")
    visit.context.set_offline(False)
    expect(page.locator("#connection")).to_be_hidden()
    end(page)
    visit.forgive("ERR_INTERNET_DISCONNECTED")


def test_settings_are_used_again(visitor: Visitor) -> None:
    page = visitor().page
    submit(page, size=80, steps="7", seed="42")
    until(page, "succeeded")
    page.get_by_role("link", name="Use these settings again").click()
    for name, value in {"image_size": "80", "steps": "7", "seed": "42"}.items():
        expect(page.locator(f"[name={name}]")).to_have_value(value)


def test_the_gallery_shows_and_filters(visitor: Visitor) -> None:
    page = visitor().page
    job = submit(page, size=48, steps="5")
    until(page, "succeeded")
    page.get_by_role("link", name="Gallery").click()
    mine = page.locator(f"a[href='{job[job.index('/jobs/') :]}']")
    expect(mine).to_have_count(1)
    page.get_by_role("link", name="Failed").click()
    expect(page.get_by_text("No picture is failed")).to_be_visible()
    page.get_by_role("link", name="Succeeded").click()
    picture = mine.locator("img").first
    picture.scroll_into_view_if_needed()
    page.wait_for_function("one => one.naturalWidth > 0", arg=picture.element_handle())


def test_a_missing_page_says_so_kindly(visitor: Visitor) -> None:
    visit = visitor()
    answer = visit.page.goto("/jobs/no-such-job")
    assert answer is not None
    assert answer.status == 404
    expect(visit.page.locator("h1")).to_have_text("There is nothing here")
    visit.forgive("status of 404")


def test_nothing_is_wider_than_a_phone(visitor: Visitor) -> None:
    visit = visitor(**PHONE)
    page = visit.page
    submit(page, size=48, steps="6", snapshot_every="1")
    until(page, "succeeded")
    assert visit.overflow() <= 0
    for address in ("/jobs", "/workers"):
        page.goto(address)
        assert visit.overflow() <= 0
    choose_samples(page)
    page.get_by_text("Advanced", exact=True).click()
    assert visit.overflow() <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_lies_behind_it(
    visitor: Visitor, scheme: str
) -> None:
    page = visitor(color_scheme=scheme).page
    choose_samples(page)
    for selector in ("h1", ".lead", ".help", ".drop-text", ".btn-primary", ".foot a"):
        assert contrast(page, selector) >= 4.5, selector
    page.goto("/jobs")
    for selector in (".filters a", ".filters a[aria-current]", ".chip", ".tile time"):
        assert contrast(page, selector) >= 4.5, selector


def contrast(page: Page, selector: str) -> float:
    """Return the contrast of an element's text with its background (WCAG)."""
    script = """one => {
        const rgb = text => text.match(/[\\d.]+/g).map(Number);
        let behind = one;
        let alpha = colour => rgb(colour)[3] ?? 1;
        while (alpha(getComputedStyle(behind).backgroundColor) === 0)
            behind = behind.parentElement;
        return [getComputedStyle(one).color,
                getComputedStyle(behind).backgroundColor].map(rgb);
    }"""
    colours = page.locator(selector).first.evaluate(script)
    lighter, darker = sorted(map(luminance, colours), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: list[float]) -> float:
    parts = [part / 255 for part in colour[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
