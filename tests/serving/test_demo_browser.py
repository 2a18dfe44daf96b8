"""The demo clicked through in chromium, at the width of a desktop and of a phone, in light and in dark."""

import pytest
from browser import CHROMIUM, DESKTOP, DRIVER, NO_BROWSER, PHONE, Page, browser, served
from test_demo import recommender  # noqa: F401 (fixture)


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=NO_BROWSER)]


@pytest.fixture(scope="module")
def place(recommender):  # noqa: F811
    with served(recommender, ["1"]) as address, browser() as driver:
        yield driver, address


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_somebody_clicks_through_it(place, size, theme, tmp_path):
    page = Page(*place)
    page.open(size, theme)
    first = page.titles()
    assert len(first) == 5 and "Heat (1995)" not in first and page.overflow() <= 0
    search = page.find("#lkg-history input")[0]
    page.click(search)
    search.send_keys("toy")
    (option,) = page.until(lambda: [each for each in page.find("ul[role=listbox] li") if each.is_displayed()])
    assert "Toy Story" in option.text
    page.click(option)
    page.until(lambda: "Toy Story (1995)" not in page.titles() and len(page.titles()) == 4)
    label, handle = next(iter(page.sliders().items()))
    set_value = "arguments[0].value = 100; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    page.driver.execute_script(set_value, handle)
    page.until(lambda: any(each.startswith(f"{label} (history:") for each in page.sliders()))
    page.click(page.find("#lkg-reset")[0])
    page.until(lambda: label in page.sliders())
    closed = page.find("#lkg-ranked details:not([open]) summary")[0]
    page.click(closed)
    page.until(lambda: len(page.find("#lkg-ranked details[open]")) == 2)
    assert page.overflow() <= 0
    page.click(next(each for each in page.find("button[role=tab]") if "retriever" in each.text))
    page.until(lambda: page.find("#lkg-compared svg")[0].is_displayed())
    assert page.overflow() <= 0
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    wrong = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [entry for entry in wrong if "favicon" not in entry["message"]]
