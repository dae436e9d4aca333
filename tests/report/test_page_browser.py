"""The page of an audit in Chromium: sorting, filters, keyboard, narrow screens, paper, contrast, hostile strings."""

import dataclasses

import browser
import made_audits
import pytest
from pages import RATES, SCORES, SHOWN, hostile_page, page, pairs, table

from side_jax.report import comparison, comparison_page
from side_jax.report.page import model
from side_jax.report.page.render import render

pytestmark = pytest.mark.browser
PAIRS = pairs()
TABLE = "table[aria-labelledby=table-1]"  # the one that is open


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("pages"), {}
    many = page(
        gallery=model.Gallery(scores=SCORES, pairs=pairs(500)), tables=tuple(table(f"No. {i}") for i in range(9))
    )
    made = {"plain": page(), "hostile": hostile_page(), "private": page(private=True), "many": many}
    same = tuple(dataclasses.replace(pair, member=5000) if i % 3 == 0 else pair for i, pair in enumerate(PAIRS))
    audits = []
    for name, count in (("first", 9), ("later", 4)):
        (folder / name).mkdir()
        members, heldout = ([f"{side}{i}" for i in range(40)] for side in "mh")
        audits.append(comparison.read(made_audits.audit(folder / name, members, heldout, members[:count]), name))
    made["comparison"] = comparison_page.page(comparison.compare(audits))
    made["grouped"] = page(gallery=model.Gallery(scores=SCORES, pairs=same))
    for name, one in made.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(render(one), encoding="utf-8")
    return found


@pytest.fixture
def plain(chromium, files):
    browser.visit(chromium, files["plain"])
    return chromium


def js(driver, code, *arguments):
    return driver.execute_script(code, *arguments)


def by(driver, selector):
    return driver.find_element("css selector", selector)


def choose(driver, control, value):
    """Picks an option, ticks a box or types, and lets the page know as a user's hand would."""
    code = "const [e, v] = [document.getElementById(arguments[0]), arguments[1]];"
    code += "if (e.type === 'checkbox') e.checked = v; else e.value = v;"
    code += "if (e.value !== v && e.checked !== v) throw new Error('no option ' + v);"
    js(driver, code + "e.dispatchEvent(new Event('input', {bubbles: true}));", control, value)


def listed(driver):
    """The indices of the pairs shown, in order."""
    titles = js(driver, "return [...document.querySelectorAll('#list strong')].map(e => e.textContent)")
    return [int(title.removeprefix("Image ")) for title in titles]


def press(driver, *keys):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(driver, duration=0).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()


def test_opens_from_disk_without_a_complaint_or_a_request(chromium, files):
    for path in files.values():
        browser.visit(chromium, path)
        assert browser.requested(chromium) == {path.as_uri()}
        assert js(chromium, "return performance.getEntriesByType('resource').map(e => e.name)") == []
        assert browser.complaints(chromium) == []
        assert js(
            chromium,
            "return [...document.images].every(i => i.loading === 'lazy' || (i.complete && i.naturalWidth > 0))",
        )


def test_the_policy_stops_what_a_hole_in_the_escaping_would_run(plain):
    """The witness of every other test here: scripts, handlers, styles and pictures from elsewhere are blocked."""
    js(
        plain,
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=1>');"
        "document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/a.png>');"
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">');",
    )
    stopped = "const done = arguments[0];"
    stopped += "const look = () => violations.length > 4 ? done(violations) : setTimeout(look, 9); look()"
    assert set(plain.execute_async_script(stopped)) >= {"inline", "http://127.0.0.1:9/a.png"}
    assert js(plain, "return typeof window.hacked") == "undefined"
    assert len(browser.complaints(plain)) >= 5


def heads(driver):
    rows = f"return [...document.querySelector('{TABLE}').tBodies[0].rows].map(r => r.cells[0].textContent)"
    return js(driver, rows)


def sorts(driver):
    return js(driver, f"return [...document.querySelectorAll('{TABLE} thead th')].map(h => h.ariaSort)")


RISING = ["unconditional", "conditional", "side", "side_random"]  # by AMS; who has none stands last both ways
FALLING = ["side", "conditional", "unconditional", "side_random"]


def test_tables_sort_by_click(plain):
    assert heads(plain) == list(RATES)
    assert sorts(plain) == [None] * 9
    by(plain, f"{TABLE} th:nth-child(2) button").click()
    assert (heads(plain), sorts(plain)[1]) == (RISING, "ascending")
    assert by(plain, "#said").get_attribute("textContent") == "Sorted by AMS, ascending."
    by(plain, f"{TABLE} th:nth-child(2) button").click()
    assert (heads(plain), sorts(plain)[1]) == (FALLING, "descending")
    by(plain, f"{TABLE} th:nth-child(1) button").click()
    assert (heads(plain), sorts(plain)) == (sorted(RATES), ["ascending", *[None] * 8])


def test_tables_sort_by_keyboard(plain):
    js(plain, "document.querySelector('.scroll[aria-labelledby=table-1]').focus()")
    press(plain, "TAB", "TAB", "ENTER")
    assert (heads(plain), sorts(plain)[1]) == (RISING, "ascending")
    press(plain, "SPACE")
    assert (heads(plain), sorts(plain)[1]) == (FALLING, "descending")
    assert js(plain, "return document.activeElement.textContent") == "AMS"


@pytest.mark.parametrize("score", range(3))
def test_the_gallery_sorts_by_each_score_both_ways(plain, score):
    choose(plain, "size", "0")
    assert listed(plain) == [pair.index for pair in PAIRS]
    smaller = SCORES[score].closer == "smaller"
    for order, sign in (("closest", 1 if smaller else -1), ("farthest", -1 if smaller else 1)):
        choose(plain, "sort", str(score))
        choose(plain, "order", order)
        key = {p.index: (p.values[score] is None, sign * (p.values[score] or 0)) for p in PAIRS}
        assert listed(plain) == sorted(key, key=key.get)


@pytest.mark.parametrize(
    ("chosen", "keep"),
    [
        ({"attack": "side"}, lambda p: p.attack == "side"),
        ({"cluster": "4"}, lambda p: p.cluster == 4),
        ({"cluster": "none"}, lambda p: p.cluster is None),
        ({"matched": True}, lambda p: p.matched),
        ({"attack": "conditional", "matched": True}, lambda p: p.attack == "conditional" and p.matched),
        ({"find": "900"}, lambda p: "900" in str(p.heldout)),
        ({"find": " ada_1 "}, lambda p: p.name.lower().startswith("ada_1")),
        ({"find": "5007 "}, lambda p: p.member == 5007),
        ({"attack": "unconditional", "cluster": "4"}, lambda p: False),
    ],
)
def test_the_gallery_filters_and_counts(plain, chosen, keep):
    choose(plain, "size", "0")
    for control, value in chosen.items():
        choose(plain, control, value)
    kept = [pair for pair in PAIRS if keep(pair)]
    assert len(kept) < len(PAIRS)
    assert listed(plain) == [pair.index for pair in kept]
    assert by(plain, "#count").text == f"{len(kept)} of 60 pairs"
    assert js(plain, "return document.querySelectorAll('.pair.matched').length") == sum(p.matched for p in kept)
    by(plain, "#clear").click()
    assert by(plain, "#count").text == "60 of 60 pairs, shown: 1 to 24"


def test_the_gallery_works_by_keyboard_alone(plain):
    js(plain, "document.getElementById('attack').focus()")
    press(plain, "ARROW_DOWN", "ARROW_DOWN", "TAB", "TAB", "101", "TAB", "TAB", "SPACE", "TAB", "SPACE")
    kept = [p for p in PAIRS if p.attack == "side" and p.matched and "101" in f"{p.index} {p.member} {p.heldout}"]
    assert listed(plain) == [pair.index for pair in kept] == [101]
    assert by(plain, "#list li").size["width"] > 1000  # a large picture
    press(plain, "TAB", "ENTER")
    assert by(plain, "#count").text == "60 of 60 pairs, shown: 1 to 24"
    assert by(plain, "#list li").size["width"] < 600


def test_a_card_says_what_the_pair_is(plain):
    choose(plain, "find", "Ada_7.jpg")
    card, pair = by(plain, "#list li"), PAIRS[7]
    said = card.text.split("\n")
    facts = ["Member", "5049", "Held-out", "9007", "Attack", "side, scale 10", "Cluster", "7"]
    scores = ["rmse", f"{pair.values[0]:.3f}", "SSCD", f"{pair.values[1]:.3f}", "membership", f"{pair.values[2]:.1f}"]
    assert said[said.index("Member") :] == [*facts, "Member's name", "Ada_7.jpg", *scores]
    assert "Image 107" in card.text
    picture = card.find_element("css selector", "img")
    assert picture.get_attribute("src") == pair.picture.uri
    assert picture.get_attribute("alt") == "Image 107: generated, nearest member, nearest held-out, difference"


def test_a_member_has_one_card_with_all_its_images(chromium, files):
    """Pairs 0, 3, 6, ... of one member, the others of one each; sorting decides which image the card shows."""
    browser.visit(chromium, files["grouped"])
    assert by(chromium, "#count").text == "60 of 60 pairs, members: 41, shown: 1 to 24"
    card, own = by(chromium, "#list li"), [pair for i, pair in enumerate(PAIRS) if i % 3 == 0]
    assert listed(chromium)[:3] == [PAIRS[i].index for i in (0, 1, 2)]
    assert card.find_element("css selector", "summary").text == "19 more of this member"
    card.find_element("css selector", "summary").click()
    lines = js(chromium, "return [...arguments[0].querySelectorAll('.more figcaption')].map(e => e.textContent)", card)
    assert lines == [f"Image {p.index}; unconditional; rmse {p.values[0]:.3f}" for p in own[1:]]
    choose(chromium, "sort", "0")
    choose(chromium, "attack", "unconditional")
    assert by(chromium, "#count").text == "20 of 60 pairs, members: 1"
    assert listed(chromium) == [min(own, key=lambda pair: pair.values[0]).index]
    choose(chromium, "attack", "side")
    assert js(chromium, "return [...document.querySelectorAll('#list .more')].every(e => e.hidden)")


def test_the_gallery_turns_its_pages(plain):
    order = [pair.index for pair in PAIRS]
    for first, last, key in ((0, 24, "next"), (24, 48, "next"), (48, 60, "next"), (48, 60, "previous"), (24, 48, None)):
        assert listed(plain) == order[first:last]
        assert f"shown: {first + 1} to {last}" in by(plain, "#count").text
        if key:
            by(plain, f"#{key}").click()
    by(plain, "#clear").click()
    assert listed(plain) == order[:24]
    choose(plain, "size", "96")
    assert listed(plain) == order
    assert not by(plain, "#turn").is_displayed()


def test_at_360_pixels_only_containers_scroll(chromium, files):
    for name in ("plain", "hostile"):
        browser.visit(chromium, files[name], width=360, height=800)
        assert js(chromium, "return document.documentElement.scrollWidth") <= 360
        cut = "return [...document.querySelectorAll('p, li, h1, h2, h3, dl, figcaption, select, button, td, th')]"
        cut += ".filter(e => !e.closest('.scroll, .skip, .hidden') && e.getBoundingClientRect().right > 360)"
        assert js(chromium, cut + ".map(e => e.outerHTML)") == []
    browser.visit(chromium, files["plain"], width=360, height=800)
    js(chromium, "document.querySelectorAll('details').forEach(e => e.open = true)")
    wide = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert js(chromium, wide + ".map(e => e.tabIndex)") == [0] * 5  # the tables and both charts
    js(chromium, "document.querySelector('.scroll[aria-labelledby=table-1]').focus()")
    press(chromium, "ARROW_RIGHT")
    moved = "const e = document.querySelector('.scroll[aria-labelledby=table-1]'), done = arguments[0];"
    moved += "const look = () => e.scrollLeft > 0 ? done(true) : requestAnimationFrame(look); look()"
    assert chromium.execute_async_script(moved)


def test_paper_has_no_controls_and_cuts_nothing(chromium, files):
    browser.visit(chromium, files["plain"], width=680, height=960, media="print", prefers_color_scheme="dark")
    shown = (
        "return ['.skip', '#controls', '#turn', '.top nav', 'details', '#figures', '#list li:nth-child(9)', "
        "'#list li', '.paper', "
    )
    shown += "arguments[0]]"
    shown += ".filter(s => document.querySelector(s).checkVisibility({visibilityProperty: true}))"
    assert js(chromium, shown, TABLE) == ["#list li", ".paper", TABLE]
    wide = "return [...document.querySelectorAll('.scroll, pre, .pair')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert js(chromium, wide + ".map(e => e.outerHTML.slice(0, 200))") == []
    assert js(chromium, "return document.documentElement.scrollWidth") <= 680
    assert js(chromium, "return getComputedStyle(document.body).color") == "rgb(27, 34, 48)"  # dark ink on white


def test_paper_is_few_pages(chromium, files):
    """Of a page with many pairs and tables, too; what a reader has unfolded is printed."""
    browser.visit(chromium, files["many"])
    folded = browser.printed_pages(chromium)
    assert folded <= 8
    js(chromium, "document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.printed_pages(chromium) > folded


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 375), ("dark", 375)])
def test_no_rule_of_accessibility_is_violated(chromium, files, scheme, width):
    """WCAG 2.2, A and AA, by axe-core, all unfolded: contrasts, names, roles, ids, what scrolls, what is reachable."""
    for name in ("plain", "private", "hostile", "comparison"):
        browser.visit(chromium, files[name], width=width, prefers_color_scheme=scheme)
        js(chromium, "document.querySelectorAll('details').forEach(e => e.open = true)")
        passed, violated = browser.check(chromium)
        assert violated == [], name
        assert {"color-contrast", "document-title", "html-has-lang"} <= passed
    browser.visit(chromium, files["plain"], prefers_color_scheme=scheme)
    for tone in model.TONES:
        js(chromium, "document.querySelector('.verdict').className = 'verdict ' + arguments[0]", tone)
        js(chromium, "document.querySelector('td').className = arguments[0]", tone)
        assert browser.check(chromium)[1] == []


def test_what_axe_would_find(plain):
    """The witness of the test above."""
    js(plain, "document.querySelector('.status').attributeStyleMap.set('color', '#e0b0a8')")
    js(plain, "document.querySelector('.chart [role=img]').removeAttribute('aria-label')")
    js(plain, "document.getElementById('find').parentElement.replaceWith(document.getElementById('find'))")
    assert [one.partition(":")[0] for one in browser.check(plain)[1]] == ["color-contrast", "label", "role-img-alt"]


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(plain):
    choose(plain, "sort", "0")  # else the order of sorting is of no use, and off
    focusable = "a[href], button, input, select, summary, [tabindex='0']"
    visible = f'[...document.querySelectorAll("{focusable}")].filter(e => e.checkVisibility())'
    js(plain, f"window.all = {visible}; window.seen = []; addEventListener('focusin', e => window.seen.push(e.target))")
    count = js(plain, "return window.all.length")
    press(plain, *["TAB"] * count)
    assert js(plain, "return window.seen.map(e => window.all.indexOf(e))") == list(range(count))
    ids = js(plain, "return window.seen.map(e => e.id).filter(Boolean).join(' ')")
    assert ids == "sort order attack cluster find size matched large clear previous next"
    for element in js(plain, "return window.all"):
        assert element.accessible_name
        js(plain, "arguments[0].focus({focusVisible: true})", element)
        assert js(plain, "return getComputedStyle(arguments[0]).outlineStyle", element) == "solid"


def test_the_skip_link_comes_first_and_skips(plain):
    press(plain, "TAB")
    assert js(plain, "return document.activeElement.getBoundingClientRect().left") >= 0
    press(plain, "ENTER")
    assert js(plain, "return document.activeElement.id") == "main"


def test_hostile_strings_are_shown_as_text(chromium, files):
    browser.visit(chromium, files["hostile"])
    choose(chromium, "size", "0")
    for text in SHOWN:
        choose(chromium, "attack", text)
        assert by(chromium, "#count").text == "4 of 28 pairs"
        shown = "return [...document.querySelectorAll('#list dd')].filter(e => e.textContent === arguments[0]).length"
        assert js(chromium, shown, text) >= 4
    choose(chromium, "attack", "")
    for place in (".findings li", ".notes li", ".sure li", ".provenance dt", ".provenance dd", ".facts-line dd"):
        texts = js(chromium, "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", place)
        assert texts == list(SHOWN)
    assert js(chromium, "return document.querySelector('pre').textContent") == "\n".join(SHOWN)
    js(chromium, "document.querySelectorAll('details').forEach(e => e.open = true)")
    for button in chromium.find_elements("css selector", "thead button"):
        button.click()
    assert js(chromium, "return typeof window.hacked") == "undefined"
    assert browser.complaints(chromium) == []
    assert browser.requested(chromium) == {files["hostile"].as_uri()}


def test_without_scripts_the_first_pairs_are_there(chromium, files):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.visit(chromium, files["plain"])
        snapshot = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    names = [node["name"]["value"] for node in snapshot if not node["ignored"] and node.get("name", {}).get("value")]
    roles = {node["role"]["value"] for node in snapshot if not node["ignored"]}
    assert sum(name.startswith("Image ") and "generated" in name for name in names) == 24
    assert "24 of 60 pairs" in names
    assert any("need JavaScript" in name for name in names)
    assert "status" in roles  # what announces the count
    assert not {"combobox", "searchbox", "checkbox", "button"} & roles
