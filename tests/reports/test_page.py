"""The HTML page of a report: complete in itself, text stays text, colours can be told, damage is said."""
import base64
import io
import json
import re

import numpy as np
import pytest
from helpers.pages import Page, contrast, themes
from helpers.report_folders import BENCH, BOTH, CURVE, MODEL, NASTY, compared, html, measured, run_at, samples
from helpers.report_samples import DATA, STUDENT, TEACHER, evaluation, report, score
from PIL import Image

from pwoa_cli.files.plain import write_json
from pwoa_cli.reports import collection, pictures, plots, sections, verdict


@pytest.fixture
def run(tmp_path):
    return run_at(tmp_path / "run")


# --- complete in itself ---------------------------------------------------------------

@pytest.mark.parametrize("kind", ["run", "bare", "evaluation", "one model", "several"])
def test_a_page_is_well_formed_and_needs_nothing_else(run, tmp_path, kind):
    bare = tmp_path / "bare"
    bare.mkdir()
    write_json(bare / "report.json", {"bare": report(), "one model": evaluation()}.get(kind, report()))
    text = {"run": lambda: html(run), "evaluation": lambda: html(run / "eval"),
            "several": lambda: compared(tmp_path)}.get(kind, lambda: html(bare))()
    shown = Page(text)
    assert text.startswith("<!doctype html>") and len(text.encode()) < 1_000_000
    assert all(link.startswith(("data:", "#")) for link in shown.links) and "://" not in text
    assert not shown.of("script") and not [name for element in shown.elements for name in element.attributes
                                           if name.startswith("on")]
    ids = [element.attributes["id"] for element in shown.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    used = {link[1:] for link in shown.links if link.startswith("#")} | {
        name for element in shown.elements for name in element.attributes.get("aria-labelledby", "").split()}
    assert used <= set(ids)
    assert all("alt" in element.attributes for element in shown.of("img"))
    assert all({"title", "desc"} <= {inner.tag for inner in shown.elements if "svg" in inner.within}
               for _ in shown.of("svg"))


def test_a_run_with_all_beside_it_shows_all(run):
    shown = Page(html(run))
    assert len(shown.of("svg")) == 2 and len(shown.of("img")) == 9
    for words in ("Measured again: eval", "97.0 [95.0, 99.0]", "linear1.weight", "90.01", "No gain.",
                  "3 of 1000 test images break pruned and not teacher", "1.25 [1, 2]", "sparsify",
                  "sha256 " + "1" * 64, "a note on [x]"):
        assert words in shown.words, words
    assert not [line for line in shown.commands if "--curve" in line and "--save-samples" in line]
    first, again = shown.commands
    options = "--norm linf --eps 0.3 --attacks pgd-10,aa --samples 1000 --seed 0 --curve 0,0.1,0.3"
    assert first.startswith("pwoa prune --config ") and again == f"pwoa eval {run} {options}"
    assert Page(html(run / "eval")).commands[-1] == (
        f"pwoa eval pruned.pt --compare teacher.pt --data examples/data {options}")


def test_the_command_that_makes_it_again_says_what_differs_from_the_run(run):
    """Another data set, how it was read, and an eps that is not as people write it."""
    eps = 0.0123456789
    choices = {"image_size": [16, 24], "class_order": "text", "labels_from": 1, "logits": "data",
               "class_map": "a b"}
    write_json(run / "eval/report.json", measured(eps=eps, curve=None, data=DATA | {
        "name": "other", "where": "~/other set", "choices": choices}))
    said = ("--image-size 16x24 --class-map 'a b' --class-order text --labels-from 1 --logits data "
            f"--data ~/'other set' --norm linf --eps {eps!r} --attacks pgd-10,aa --samples 1000 --seed 0")
    assert Page(html(run)).commands[-1] == f"pwoa eval {run} {said}"
    write_json(run / "report.json", report(model=MODEL, data=DATA | {"choices": choices}))
    assert Page(html(run)).commands[-1] == f"pwoa eval {run} {said}"  # with --data the run's do not hold
    assert Page(html(run / "eval")).commands[-1] == f"pwoa eval pruned.pt --compare teacher.pt {said}"


def test_figures_are_those_of_the_markdown(run):
    shown = Page(html(run)).words
    for scores in (TEACHER, STUDENT):
        for one in scores.values():
            low, high = one["ci95"]
            assert f"{100 * one['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in shown


def test_the_largest_page_is_below_a_megabyte(run):
    samples(
        run / "eval" / "samples.npz", broken=8, size=96, channels=3)
    shown = Page(html(run))
    assert len(shown.of("img")) == 3 * pictures.MOST and len(shown.html.encode()) < 1_000_000


# --- text stays text ---------------------------------------------------------------

def test_names_with_markup_in_them_stay_text(tmp_path):
    folder = tmp_path / "x"
    (folder / NASTY.replace("/", "")).mkdir(parents=True)
    layers = [{"name": NASTY, "shape": (1,), "nonzero": 1, "total": 4}]
    finding = {"check": "x", "unreliable": True, "text": NASTY, "models": []}
    made = report(model=MODEL | {"source": NASTY}, layers=layers, notes=[NASTY], data=DATA | {"name": NASTY},
                  findings=[finding], command={NASTY: NASTY}, student=STUDENT | {NASTY: score(0.5, 0.4, 0.6)})
    write_json(folder / "report.json", made)
    points = [{"eps": point["eps"], "scores": {NASTY: point["scores"]["pruned"]}} for point in CURVE]
    write_json(folder / NASTY.replace("/", "") / "report.json", measured(curve=points))
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "phase": NASTY, "loss": 1}) + "\n")
    text = html(folder)
    shown = Page(text)
    assert not shown.of("script") and not shown.of("img") and "\x1b" not in text and "\u202e" not in text
    assert shown.words.count("<img src=x onerror=alert(1)>&amp;</title><script>$x_1$ \\x1b[31m\\u202e") > 8


def test_a_comparison_of_such_names_stays_text(tmp_path):
    shown = Page(compared(tmp_path, names=("<b>a", "_b", "$c$")))
    assert not shown.of("b") and {"<b>a", "_b", "$c$"} <= set(shown.words.split())


# --- colours ---------------------------------------------------------------

def test_text_and_lines_can_be_told_from_their_ground_in_every_theme(run):
    """WCAG 2.2: 4.5 for text, 3 for what is drawn."""
    text = html(run)
    for name, colors in themes(text).items():
        for ground in ("paper", "raised"):
            for ink in ("ink", "soft"):
                assert contrast(colors[ink], colors[ground]) >= 4.5, (name, ink, ground)
        assert contrast(colors["warn"], colors["warn-paper"]) >= 4.5, name
        for drawn in ("line", "mark", *(f"series-{number}" for number in range(1, 6))):
            assert contrast(colors[drawn], colors["paper"]) >= 3, (name, drawn)
    assert themes(text)["print"] == themes(text)["light"]
    assert not re.search(r"#0[123]0[0-3]0[0-9]\b", text)  # a stand-in that no variable took


def test_series_differ_in_more_than_colour():
    assert len(set(plots.MARKS)) == len(set(plots.STYLES)) == len(set(plots.SERIES)) == 5


# --- pictures ---------------------------------------------------------------

def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float) / 255


def test_pictures_are_the_clean_image_what_was_added_and_the_sum(tmp_path):
    clean, adversarial = samples(tmp_path / "samples.npz", broken=2)
    found = pictures.of(tmp_path / "samples.npz", measured())
    assert (found.count, found.n, len(found.shown)) == (2, 1000, 2)
    for row, one in enumerate(found.shown):
        assert (one.index, one.label, one.broken_by) == (5000 + row, row, "pgd-10")
        assert one.size == pytest.approx(0.125, abs=1e-6) and one.factor == pytest.approx(4, abs=1e-4)
        half = 0.5 / 255 + 1e-9  # of a grey level
        assert np.abs(pixels(one.clean) - clean[row, 0]).max() <= half
        assert np.abs(pixels(one.adversarial) - adversarial[row, 0]).max() <= half
        assert np.abs(pixels(one.perturbation) - (0.5 + 4 * (adversarial - clean)[row, 0])).max() <= half


def test_where_none_breaks_one_only_the_page_says_so(run):
    samples(run / "eval" / "samples.npz", broken=0)
    assert "None of 1000 test images breaks pruned and not teacher." in Page(html(run)).words


def test_samples_without_inputs_are_no_pictures(tmp_path):
    np.savez(tmp_path / "samples.npz", index=np.arange(3))
    assert pictures.of(tmp_path / "samples.npz", measured()) is None
    assert pictures.of(tmp_path / "samples.npz", evaluation()) is None


# --- what is missing, damaged or of another model ------------------------------------------------

def test_what_a_bare_run_lacks_is_said_with_the_command_that_gets_it(tmp_path):
    write_json(tmp_path / "report.json", report(model=MODEL))
    assert Page(html(tmp_path)).commands == [
        f"pwoa eval {tmp_path} --attacks pgd,cw --curve 0.075,0.15,0.225,0.3,0.375,0.45 "
        f"--out {tmp_path}/eval --save-samples {tmp_path}/eval/samples.npz",
        f"pwoa bench {tmp_path} --json > {tmp_path}/bench.json",
        f"pwoa prune --config {tmp_path}/config.toml"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("bench.json", b"", "bench.json"), ("bench.json", b"{}", "is missing"),
    ("bench.json", json.dumps(BENCH | {"models": {"model": {"source": "a", "file_bytes": 7}}}).encode(),
     "is of another file: 7 bytes"),
    ("eval/report.json", b"{", "report.json"), ("eval/report.json", b'{"results": 1}', "is missing"),
    ("eval/samples.npz", b"PK", "samples.npz"), ("metrics.jsonl", b"nonsense\n[1]\n{\"loss\": \"x\"}\n", "")])
def test_what_is_damaged_is_left_out_and_said(run, name, content, words):
    (run / name).write_bytes(content)
    shown = Page(html(run)).words
    assert (words in shown.partition("Left out: ")[2]) if words else "Training" not in shown


def test_what_is_of_another_model_or_evaluation_is_left_out_and_said(run):
    samples(run / "eval" / "samples.npz", clean=np.zeros(1000, dtype=bool))
    assert "its clean accuracy is not that of the report" in Page(html(run)).words
    write_json(run / "eval" / "report.json", measured(models={"pruned": BOTH["teacher"]}))
    shown = Page(html(run)).words
    assert "Measured again" not in shown and "is of another model." in shown


# --- what the figures say ---------------------------------------------------------------

def test_the_verdict_is_a_sentence_with_what_makes_it_unreliable():
    assert verdict.verdict(report()) == (
        "With 90% of its weights zero, 82.0% [76.1, 86.7] of 200 mnist test images stay right under aa, linf "
        "eps 0.3, against 83.0% of the teacher (no loss beyond chance: 1.0 [-6.5, 8.5] points); the file is "
        "10.8 times smaller.")
    finding = {"check": "x", "unreliable": True, "text": "gradients are masked.", "models": []}
    assert verdict.verdict(report(findings=[finding])).startswith(
        "Unreliable, as gradients are masked: with 90")
    assert verdict.verdict(evaluation(results={"clean": STUDENT["clean"]}, norm=None, eps=None)) == (
        "98.7% [97.8, 99.2] of 1000 mnist test images are classified rightly; nothing was attacked.")


@pytest.mark.parametrize(("changes", "words"), [
    ({"student": {}}, "File 10.8 times smaller."),
    ({"teacher": {}}, "stay right under aa, linf eps 0.3; the file"),
    ({"student": {"clean": STUDENT["clean"]}}, "nothing was attacked, against 98.6% of the teacher")])
def test_the_verdict_makes_do_with_what_a_report_has(changes, words):
    assert words in verdict.verdict(report(**changes))


def test_doubts_of_an_evaluation_beside_a_run_stand_at_the_top(run):
    finding = {"check": "x", "unreliable": True, "text": "gradients are masked.", "models": ["pruned"]}
    write_json(run / "eval" / "report.json", measured(findings=[finding]))
    before, _, after = Page(html(run)).words.partition("eval: pruned: gradients are masked.")
    assert "these figures must not be believed" in before and "Accuracy under attack" in after


@pytest.mark.parametrize("low", [True, False])
def test_the_pareto_front_is_what_no_other_point_is_better_than(low):
    rng = np.random.default_rng(1)
    points = [tuple(point) for point in rng.integers(0, 9, (30, 2)).tolist()]
    better = lambda a, b: (a[0] <= b[0] if low else a[0] >= b[0]) and a[1] >= b[1] and a != b  # noqa: E731
    slow = sorted({b for b in points if not any(better(a, b) for a in points)})
    assert plots._front(points, best_is_low=low) == slow


def test_what_must_not_be_believed_is_hollow_and_in_no_front(monkeypatch):
    drawn = []
    points = [(90, 50.0, 48.0, 52.0, False), (95, 60.0, 58.0, 62.0, True), (97, 40.0, 38.0, 42.0, False)]
    monkeypatch.setattr(plots, "_front", lambda points, **_: drawn.append(points) or points)
    options = {"xlabel": "zeros in %", "ylabel": "aa", "reference": None, "best_is_low": False, "name": "n",
               "says": ""}
    assert "unreliable" in plots.pareto(points, **options) and drawn == [[(90, 50.0), (97, 40.0)]]
    assert "unreliable" not in plots.pareto([(*point, False) for *point, _ in points], **options)


def test_a_comparison_marks_the_models_that_must_not_be_believed(tmp_path):
    doubt = {"check": "x", "unreliable": True, "text": "t", "models": ["pruned"]}
    for name, findings in (("a", []), ("b", [doubt])):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "report.json", report(model=MODEL, findings=findings))
    (table,) = collection.together(collection.read([str(tmp_path / name) for name in "ab"]))
    (zeros, _) = sections.several(table, name="t")["plots"]
    assert "b: zeros in % 90, 82.0% (unreliable)" in zeros and "a: zeros in % 90, 82.0%;" in zeros


def test_a_comparison_has_a_row_a_model_and_two_plots(tmp_path):
    shown = Page(compared(tmp_path))
    assert len(shown.of("svg")) == 2
    assert "1 a 90% 240.0 kB 98.7 [97.8, 99.2] 82.0 [76.1, 86.7] 1.0 [-6.5, 8.5]" in shown.words
    assert "3 c 96% 140.0 kB" in shown.words and "- teacher - - 98.6" in shown.words
