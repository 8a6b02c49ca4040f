"""The page in Chromium: it asks for nothing, fits phones and screens, and counts as the program does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esl_dist.adaptation.entropy import HIGHEST_LEVEL
from esl_dist.adaptation.pseudo_labels import TRUST, kept_pixels, thresholds
from esl_dist.config import Report
from esl_dist.inference.labelling.histograms import STEPS
from esl_dist.programs.report import main
from esl_dist.reporting.scores import percent
from tests.report.pages import content_of

pytestmark = pytest.mark.browser

SECTIONS = ("runs", "one-class", "rounds", "gallery", "curves", "settings")


@pytest.fixture(scope="module")
def file(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of the small experiment, one of whose class and run names would be a program in HTML."""
    folder = tmp_path_factory.mktemp("page")
    scores = json.loads((experiments / "scores/advent.json").read_text())
    evil = "<img src=x onerror=document.title='run'></script><script>document.title='run'</script>"
    scores["iou"] = {evil if name == "sky" else name: value for name, value in scores["iou"].items()}
    (folder / "named by others.json").write_text(json.dumps(scores))
    numbers = {"iou": {"road": 0.5, "7": 0.25}, "miou": 0.375, "confusion": [[60, 40], [0, 10]]}
    (folder / "numbers.json").write_text(json.dumps(numbers))
    runs = [str(experiments / "snapshots" / name) for name in ("advent", "advent_esl")]
    output = folder / "report.html"
    scores_of_others = [str(folder / f"{name}.json") for name in ("named by others", "numbers")]
    main(Report(runs=runs, scores=scores_of_others, pictures=6, output=str(output)))
    return output


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """Return a function that opens the page, of a width and a scheme of colours; it may say and ask for nothing."""
    pages, said = [], []

    def open_page(width: int = 1400, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if is_asked_for(request.url) else None)
        page.goto(file.as_uri())
        pages.append(page)
        return page

    def is_asked_for(url: str) -> bool:
        return not url.startswith("data:") and url != file.as_uri()

    yield open_page
    for page in pages:
        page.close()
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_its_width_and_shows_every_section(opened: Any, width: int, scheme: str) -> None:
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for name in SECTIONS:
        section = page.locator(f"#{name}")
        assert section.is_visible()
        assert section.bounding_box()["height"] > 100, name
    assert page.locator("svg[role=img]").count() > 10
    assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0 && one.alt)")
    is_drawn = "one.querySelector('title') || one.closest('details:not([open])')"
    assert page.evaluate(f"[...document.querySelectorAll('.chart')].every((one) => {is_drawn})")


def test_colours_can_be_turned_over(opened: Any) -> None:
    page = opened(scheme="dark")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Show the page light").press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def luminance(color: list[int]) -> float:
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    parts = [one / 255 / 12.92 if one <= 10 else ((one / 255 + 0.055) / 1.055) ** 2.4 for one in color]
    return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_their_ground(opened: Any, scheme: str) -> None:
    page = opened(scheme=scheme)
    style = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"

    def color(name: str) -> list[int]:
        return list(bytes.fromhex(page.evaluate(style, name).removeprefix("#")))

    for text, least in (("--ink", 7.0), ("--quiet", 4.5), ("--accent", 4.5), ("--better", 4.5), ("--worse", 3.0)):
        for ground in ("--paper", "--panel"):
            light, dark = sorted((luminance(color(text)), luminance(color(ground))), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (text, ground)


def test_scores_are_those_of_the_json_files(opened: Any, experiments: Path) -> None:
    page = opened()
    for name in ("advent", "advent_esl"):
        saved = json.loads((experiments / f"scores/{name}.json").read_text())
        line = page.locator("#runs tr", has=page.locator(f'[data-miou="{name}"]'))
        texts = [text.lstrip("▲▼ ") for text in line.locator("td").all_inner_texts()]
        assert texts[0] == percent(saved["miou"])
        assert set(map(percent, saved["iou"].values())) <= set(texts)
    page.locator("#confusion").get_by_label("Scores").select_option("0")
    shown = page.locator("#confusion tbody tr").first.locator("td").all_inner_texts()
    counts = np.array(content_of_confusion(experiments)[0])
    expected = [f"{one}" for one in np.floor(100 * counts / counts.sum() + 0.5).astype(int)]
    assert [one if one != "·" else "0" for one in shown] == expected


def test_classes_that_are_called_by_numbers_keep_their_place(opened: Any) -> None:
    page = opened()
    place = page.evaluate("DATA.rows.findIndex((row) => row.title === 'numbers')")
    confusion, section = page.locator("#confusion"), page.locator("#one-class")
    confusion.get_by_label("Scores").select_option(str(place))
    assert confusion.locator("th").all_inner_texts() == ["Label ↓ Prediction →", "road", "7", "road", "7"]
    assert confusion.locator("li").all_inner_texts() == ["40.0 % of road is taken for 7"]
    section.get_by_label("Scores").select_option(str(place))
    section.get_by_label("Class").select_option("7")
    assert "Found: 100.0 % of its pixels" in section.inner_text()


def test_only_differences_that_are_seen_have_a_colour(opened: Any) -> None:
    page = opened()
    shown = page.evaluate("[null, 0, -0, 0.0004, -0.0004, 0.001, -0.001].map(direction)")
    assert shown == [None, None, None, None, None, "up", "down"]
    gain = "(gain) => { DATA.rows[1].miou = gain; DATA.rows[0].miou = 0.5; return scoreTable(['road']); }"
    kind = f"(gain) => ({gain})(gain).querySelector('[title^=against]').className"
    assert [page.evaluate(kind, one) for one in (None, 0.5, 0.6, 0.4)] == ["", "", "up", "down"]


def test_what_else_sets_a_row_apart_from_its_control_is_said_beside_the_difference(opened: Any) -> None:
    page = opened()
    told = page.evaluate("DATA.rows[1].unlike = ['other statistics'], scoreTable(['road']).textContent")
    assert "†" in told
    assert "† advent_esl and advent differ in more than the run: other statistics." in told


def test_a_validation_is_not_said_to_be_of_an_earlier_version(opened: Any) -> None:
    script = (
        "const place = element('div'); DATA.rows[0].confusion = null; showConfusion(place); return place.textContent"
    )
    assert "validations keep none" in opened().evaluate(f"() => {{ {script} }}")


def content_of_confusion(experiments: Path) -> Any:
    return json.loads((experiments / "scores/advent.json").read_text())["confusion"]


def test_half_digits_are_rounded_as_the_program_does(opened: Any) -> None:
    page = opened()
    values = [k / 1000 for k in range(1001)] + [k / 1600 for k in range(1601)] + [0.0625, 0.1875, 0.0005, 1e-9]
    assert page.evaluate("(values) => values.map(percent)", values) == [percent(one) for one in values]


def fine_histograms(experiments: Path) -> dict[str, Any]:
    """Return summary and histograms of the labels, as the files say them."""
    return {name: json.loads((experiments / f"labels/{name}.json").read_text()) for name in ("summary", "histograms")}


def figures(page: Any, kind: str) -> list[str]:
    return [page.locator(f'#round-0 [data-figure="{kind}-{key}"]').inner_text() for key in ("kept", "accuracy")]


def test_at_the_bound_of_the_job_the_figures_are_those_of_its_summary(opened: Any, experiments: Path) -> None:
    page, summary = opened(), fine_histograms(experiments)["summary"]
    expected = [percent(summary["kept"]), percent(summary["accuracy"])]
    assert figures(page, "made") == figures(page, "now") == expected
    for name, one in summary["classes"].items():
        kept, predicted = one["pixels_kept"], one["pixels_predicted"]
        assert page.locator(f'#round-0 [data-kept="{name}"]').inner_text() == percent(
            kept / predicted if predicted else None
        )
        assert page.locator(f'#round-0 [data-threshold="{name}"]').inner_text() == f"{one['threshold']:.4f}"


def spread(one: dict[str, Any], key: str) -> np.ndarray:
    """Return the levels of a class as a histogram of all of them that has the same whole bins."""
    levels = np.zeros(HIGHEST_LEVEL + 1, np.int64)
    levels[one["edges"][:-1]] = one[key]
    return levels


@pytest.mark.parametrize("score", ["entropy", "confidence"])
@pytest.mark.parametrize("step", [0, 20, 77, 180, STEPS])
def test_the_slider_counts_what_the_program_would_keep(opened: Any, experiments: Path, score: str, step: int) -> None:
    import torch

    page = opened()
    page.locator(f'#round-0 [data-rule="{score}"]').click()
    page.locator("#bound-0").evaluate(
        "(node, step) => { node.value = step; node.dispatchEvent(new Event('input')); }", step
    )
    trust, bound = TRUST[score], step / STEPS
    classes = fine_histograms(experiments)["histograms"]["scores"][score]["classes"]
    # Thresholds by the rule itself, from each class's median; a bin's pixels lie at its lowest level.
    of_medians = torch.zeros(len(classes), HIGHEST_LEVEL + 1, dtype=torch.int64)
    for place, one in enumerate(classes.values()):
        if one["median"] is not None:
            of_medians[place, one["median"]] = 1
    limits = thresholds(of_medians, trust, bound)
    sums = {
        key: kept_pixels(torch.from_numpy(np.stack([spread(one, key) for one in classes.values()])), limits, trust)
        for key in ("pixels", "labelled", "right")
    }
    everything = sum(sum(one["pixels"]) for one in classes.values())
    expected = [percent(sum(sums["pixels"]) / everything), percent(sum(sums["right"]) / sum(sums["labelled"]))]
    assert figures(page, "now") == expected
    for name, limit, kept, one in zip(classes, limits, sums["pixels"], classes.values(), strict=True):
        assert page.locator(f'#round-0 [data-threshold="{name}"]').inner_text() == f"{limit.score:.4f}"
        total = sum(one["pixels"])
        assert page.locator(f'#round-0 [data-kept="{name}"]').inner_text() == percent(kept / total if total else None)


def test_the_slider_moves_by_the_keyboard_and_comes_back(opened: Any) -> None:
    page = opened()
    before = figures(page, "now")
    slider = page.locator("#bound-0")
    slider.focus()
    slider.press("Home")
    assert page.locator("label[for=bound-0]").inner_text().endswith("0.000")
    slider.press("ArrowRight")
    assert page.locator("label[for=bound-0]").inner_text().endswith("0.005")
    assert slider.get_attribute("aria-valuetext") == "0.005"
    page.get_by_role("button", name="As made").press("Enter")
    assert figures(page, "now") == before


def keys_shown(page: Any) -> list[str]:
    return [one.get_attribute("data-key") for one in page.locator("#gallery li[data-key]").all()]


def test_an_axis_ends_however_near_each_other_its_ends_are(opened: Any) -> None:
    page = opened()
    for least, most in ((1, 1 + 2**-52), (1e5, 1e5 + 1.5e-11), (0, 1), (-3e-7, 2.5), (2, 2)):
        found = page.evaluate(f"ticks({least!r}, {most!r})")
        assert 1 <= len(found) <= 12
        assert all(least - 1e-9 <= one <= most + 1e-9 for one in found)


def test_series_beyond_the_seventh_have_marks_of_their_own(opened: Any) -> None:
    mark = "const one = shape(number); return one.getAttribute('d') + one.getAttribute('fill')"
    marks = opened().evaluate(f"Array.from({{ length: 49 }}, (_, number) => {{ {mark} }})")
    assert len(set(marks)) == 49


def test_the_best_row_is_that_among_rows_of_the_same_pictures(opened: Any) -> None:
    page = opened()
    elsewhere = "{ ...DATA.rows[0], title: 'elsewhere', pictures: 'others', miou: 0.001, control: null }"
    cells = "[...scoreTable([]).querySelectorAll('td[data-miou]')]"
    shown = page.evaluate(f"DATA.rows.push({elsewhere}); {cells}.map((one) => one.className)")
    rows = page.evaluate("DATA.rows.map((row) => [row.pictures, row.miou])")
    most = {place: max(miou for other, miou in rows if other == place) for place, _ in rows}
    assert shown == ["best" if miou == most[place] else "" for place, miou in rows]
    assert shown[-1] == "best"


def test_pictures_are_sorted_and_filtered(opened: Any, file: Path) -> None:
    page, told = opened(), content_of(file)["gallery"]
    pictures = told["pictures"]
    assert keys_shown(page) == [one["key"] for one in pictures]
    sorting, filtering, where = (
        page.get_by_label("Sort by"),
        page.get_by_label("With the class"),
        page.get_by_label("where it is"),
    )
    orders = {"unsure": ("entropy_mean", True), "least-kept": ("kept", False), "low-miou": ("miou", False)}
    for value, (key, is_falling) in orders.items():
        sorting.select_option(value)
        expected = sorted(pictures, key=lambda one: one[key], reverse=is_falling)
        assert keys_shown(page) == [one["key"] for one in expected]
    sorting.select_option("order")
    for place in range(len(told["classes"])):
        filtering.select_option(str(place))
        for kind in ("predicted", "labelled"):
            where.select_option(kind)
            assert keys_shown(page) == [one["key"] for one in pictures if place in one[kind]]


def test_a_picture_is_enlarged_and_the_next_follows(opened: Any, file: Path) -> None:
    page, pictures = opened(390), content_of(file)["gallery"]["pictures"]
    page.locator("#gallery li button").first.press("Enter")
    dialog = page.locator("dialog[open]")
    assert dialog.locator("h3").inner_text() == pictures[0]["key"]
    page.keyboard.press("ArrowRight")
    assert dialog.locator("h3").inner_text() == pictures[1]["key"]
    assert dialog.bounding_box()["width"] <= 390
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_a_class_is_told_in_words(opened: Any, experiments: Path) -> None:
    page = opened()
    page.get_by_label("Scores").first.wait_for()
    section = page.locator("#one-class")
    section.get_by_label("Class").select_option("road")
    section.get_by_label("Scores").select_option("1")
    saved = json.loads((experiments / "scores/advent_esl.json").read_text())
    counts = np.array(saved["confusion"])
    words = section.inner_text()
    assert f"IoU {percent(saved['iou']['road'])} in advent_esl" in words
    if counts[0].sum():
        assert f"Found: {percent(counts[0, 0] / counts[0].sum())} % of its pixels" in words


def test_names_of_others_are_shown_and_not_run(opened: Any) -> None:
    page = opened()
    assert page.title() == "ESL-Dist report"
    assert "onerror=" in page.locator("#runs").inner_text()
