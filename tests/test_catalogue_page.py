"""docs/catalogue.md says what the code says, and its figures show every component."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from dnnkit.config.schedule import schedule_of
from dnnkit.record.component_figures import STEPS, schedule_curve, watched
from dnnkit.registry import KINDS, REGISTRIES, activations
from dnnkit.schema import component_settings, kind_settings, node
from docs.generate.figures import FIGURES
from docs.generate.page import PAGE, escaped, prose, text
from docs.generate.records import builtin

DOCS = Path(__file__).parent.parent / "docs"
STALE = "the code has changed since the page was written: make docs"


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / PAGE).read_text(encoding="utf-8")


def test_the_page_is_what_the_code_says(page: str) -> None:
    assert page == text(), STALE


def test_every_built_in_component_is_on_the_page_with_every_setting(page: str) -> None:
    for group in KINDS:
        for record in builtin(group):
            assert f"\n### `{group}={record.name}`\n" in page
            for name in component_settings(record).names():
                assert f"| `{group}.{name}` |" in page
        assert all(f"| `{group}.{name}` |" in page for name in kind_settings(group).names() if builtin(group))


def test_every_link_leads_to_a_heading(page: str) -> None:
    """An anchor is the heading in lower case without its signs, as GitHub makes it."""
    headings = [re.sub(r"[`=]", "", line.lstrip("# ")).lower() for line in page.splitlines() if re.match(r"#+ ", line)]
    links = re.findall(r"\]\(#([^)]*)\)", page)
    assert len(set(headings)) == len(headings)
    assert set(links) <= set(headings)
    assert len(links) == sum(len(builtin(group)) for group in KINDS) + len({group for group in KINDS if builtin(group)})


def test_what_others_bring_is_not_on_the_page(registries: None) -> None:
    before = text()
    activations.register("somebody_elses")(nn.ReLU)
    assert "somebody_elses" in REGISTRIES["activation"]
    assert text() == before


@pytest.mark.parametrize("group", FIGURES)
def test_every_component_is_drawn(group: str, page: str) -> None:
    """In the figure that the code draws, in the file that is there, and in the words under it."""
    from PIL import Image

    names = [record.name for record in builtin(group)]
    figure = FIGURES[group]()
    assert [axes.get_title() for axes in figure.axes] == names
    assert all(axes.lines or axes.patches for axes in figure.axes)
    path = DOCS / "catalogue" / f"{group}.png"
    with Image.open(path) as image:
        assert image.info["Description"].split() == names, STALE
    assert path.stat().st_size < 150_000
    assert f"(catalogue/{group}.png)" in page
    assert f"Drawn: {', '.join(f'`{name}`' for name in names)}." in page


def test_performance_is_drawn_cut_after_ten_validations_without_improvement() -> None:
    """The loss is best at the 15th validation, so the 26th is the 11th that is not better: the factor is 0.1 from step 25 · 20 on."""
    curve = schedule_curve(schedule_of(node("scheduler", "performance")))
    assert watched()[14] == min(watched()) == 1 / 15
    assert (curve[499], curve[500]) == (1.0, pytest.approx(0.1))
    assert len(curve) == STEPS


def test_prose_is_shown_as_it_was_written() -> None:
    doc = "a * b < c, `x*y`, d[i](j).\n\nTwo:\n\n    - {code: *}\n\n- no list\n1. nor this\nSource: somebody."
    first, second, code, last = prose(doc)
    assert first == r"a \* b \< c, `x*y`, d[i\](j)."
    assert (second, code) == ("Two:", "    - {code: *}")
    assert last == "\\- no list\n1\\. nor this\\\nSource: somebody."
    assert escaped("negative_slope > 1") == "negative_slope > 1"
