"""How a report shows: in Markdown, and on a terminal of 60 columns."""
import io
import re

import pytest
from helpers.report_samples import STUDENT, TEACHER, evaluation, report, score
from rich.console import Console

from pwoa_cli.reports import tables, terminal


def rendered(shown: dict, width: int = 60) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(terminal.one(shown))
    return stream.getvalue()


def test_rows():
    assert tables.rows(report())[1] == ("pgd-10", "93.6 [91.9, 95.0]", "93.2 [91.5, 94.6]", "0.4 [-1.8, 2.6]")
    assert tables.rows(evaluation())[0] == ("clean", "98.7 [97.8, 99.2]")


def test_rows_of_attacks_that_one_side_lacks_and_of_a_tiny_drop():
    teacher = {"clean": score(0.9801, 0.97, 0.99), "cw": TEACHER["aa"]}
    student = {"clean": score(0.9803, 0.97, 0.99)}
    assert tables.rows(report(teacher=teacher, student=student)) == [
        ("clean", "98.0 [97.0, 99.0]", "98.0 [97.0, 99.0]", "0.0 [-1.4, 1.4]"),
        ("cw", "83.0 [77.2, 87.6]", "-", "-")]


def test_markdown_document():
    text = tables.markdown(report())
    assert text.startswith("# lenet.pt pruned to 90% sparsity\n\n"
                           "clean 98.6 -> 98.7%, aa 83.0 -> 82.0% (lowest), file 10.8 times smaller.\n")
    for line in ("|  | teacher | pruned | drop |",
                 "| pgd-10 | 93.6 [91.9, 95.0] | 93.2 [91.5, 94.6] | 0.4 [-1.8, 2.6] |",
                 "- sparsity: 90% wanted, 90% reached (unstructured, recipe default)",
                 "- weights: 62,749 of 627,488 nonzero, in 2 layers",
                 "- file: 240.0 kB: 10.8 times smaller than dense (2.6 MB), 1.01 times the entropy limit "
                 "(238.0 kB)",
                 "- MACs: 5.2 M, of which 812.3 k with nonzero weights; torch multiplies the zeros too, so "
                 "the time stays",
                 "- time: load 0.8s, sparsify 43s, evaluate 1m 41s; together 2m 25s", "- note: a note on [x]",
                 "| linear1.weight | 200x3136 | 62,661 | 627,200 | 90.01 |"):
        assert line in text.splitlines()
    assert "n = 1000 (aa: 200) test samples of mnist; attacks within linf eps 0.3." in text


def test_markdown_tables_have_equal_columns_whatever_the_names():
    evil = "a|b\n\x1b[31m`x`"
    text = tables.markdown(report(teacher={evil: TEACHER["aa"]}, student={evil: TEACHER["aa"]},
                                  layers=[{"name": evil, "shape": (1,), "nonzero": 1, "total": 2}]))
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert bars == [5, 5, 5, 6, 6, 6] and "\x1b" not in text


def test_evaluation_shows_in_the_same_style():
    one = tables.markdown(evaluation())
    assert one.startswith("# lenet.pt under attack\n\nclean 98.7%, aa 82.0% (lowest).\n")
    assert ("| aa | 82.0 [76.1, 86.7] |" in one and "eps 8/255" in one and "drop" not in one
            and "Layers" not in one)
    two = tables.markdown(evaluation(teacher=TEACHER))
    assert "| aa | 83.0 [77.2, 87.6] | 82.0 [76.1, 86.7] | 1.0 [-" in two
    assert (evaluation().keys() >= {"results"}
            and evaluation(teacher=TEACHER).keys() >= {"teacher", "student", "drop"})


@pytest.mark.parametrize("names,said", [(["aa-fast"], True), (["aa"], False), (["aa-fast", "aa"], True)])
def test_a_figure_of_aa_fast_is_called_an_upper_bound_where_it_stands(names, said):
    shown = evaluation(results={"clean": STUDENT["clean"]} | dict.fromkeys(names, STUDENT["aa"]))
    bound = "aa-fast is an upper bound: AutoAttack without FAB-T and Square."
    for text in (tables.markdown(shown), " ".join(rendered(shown).split())):
        assert (bound in text) is said


def test_headline_of_a_run_names_its_folder():
    of_run = {"model": {"source": "pwoa-runs/lenet-0.9/model.safetensors"}}
    assert tables.headline(of_run) == "lenet-0.9 under attack"
    assert tables.headline({"model": {"source": "model.safetensors"}}) == "model.safetensors under attack"


def test_evaluation_of_clean_accuracy_alone():
    shown = evaluation(norm=None, eps=None, results={"clean": STUDENT["clean"]})
    assert "attacks within" not in tables.markdown(shown) and "clean 98.7%." in tables.markdown(shown)


def long() -> dict:
    names = ("clean", "a-plug-in-attack-with-a-long-name-[x]", "pgd-40-r5")
    low = score(0.0, 0.0, 1.0)
    return report(model={"source": "x" * 90 + ".pt", "sha256": "0", "arch": "a", "num_classes": 10},
                  teacher=dict.fromkeys(names, score(1.0, 0.9999, 1.0)), student=dict.fromkeys(names, low),
                  drop=dict.fromkeys(names, {"points": -100.0, "ci95": [-100.0, -100.0]}),
                  seconds={f"phase{i}": 1e5 for i in range(9)},
                  size=dict.fromkeys(("dense_bytes", "file_bytes", "limit_bytes"), 10**12))


@pytest.mark.parametrize("shown", [
    report(), long(), evaluation(), evaluation(teacher=TEACHER),
    evaluation(teacher=TEACHER,
               findings=[{"check": "x", "unreliable": True, "text": "blind.", "models": []}]),
    evaluation(teacher=TEACHER, unfinished={"teacher": {"square": {"n": 0, "of": 10**6}}, "pruned": {}})],
    ids=["report", "long", "one", "two", "doubted", "unfinished"])
def test_terminal_table_holds_at_60_columns_with_every_number(shown):
    text = rendered(shown)
    assert max(map(len, text.splitlines())) <= 60 and "…" not in text
    words = text.split()
    for _, *cells in tables.rows(shown):
        assert all(word in words for cell in cells for word in cell.split())
    flat = "".join(words)
    assert all("".join(sentence.split()) in flat for _, sentence in tables.facts(shown))


def test_terminal_table_reads_no_markup_and_no_escape():
    source = {"source": "[bold]x[/bold][/nope]\x1b[2J.pt", "sha256": "0", "arch": "a", "num_classes": 10}
    text = rendered(report(model=source | {"source": source["source"].replace("/", "")}))
    assert "[bold]x[bold][nope]\\x1b[2J.pt" in text and "\x1b" not in text and "a note on [x]" in text


@pytest.mark.parametrize("lost,won,p,ci95,says", [
    (9, 1, 0.021, [0.1, 1.6], "9 samples lost, 1 won, McNemar p = 0.021: a loss"),
    (1, 9, 0.021, [-1.6, -0.1], "1 sample lost, 9 won, McNemar p = 0.021: a gain under these attacks"),
    (4, 4, 1, [-1.2, 1.2],
     "4 samples lost, 4 won, McNemar p = 1: no loss beyond chance; one above 1.2 points is unlikely (95%)"),
    (6, 1, 0.12, [0.1, 1.1],
     "6 samples lost, 1 won, McNemar p = 0.12: a loss, and borderline, as test and interval disagree"),
    (6, 0, 0.031, [-0.1, 1.3], "6 samples lost, 0 won, McNemar p = 0.031: no loss beyond chance; one above "
     "1.3 points is unlikely (95%), and borderline, as test and interval disagree")])
def test_what_a_paired_difference_means(lost, won, p, ci95, says):
    drop = {"clean": {"points": 0.0, "ci95": [-1.0, 1.0]},
            "worst case": {"points": 1.0, "ci95": ci95, "lost": lost, "won": won, "p": p}}
    teacher, results = TEACHER | {"worst case": TEACHER["aa"]}, STUDENT | {"worst case": STUDENT["aa"]}
    shown = tables.markdown(evaluation(teacher=teacher, results=results, drop=drop))
    assert f"- paired: worst case: {says}" in shown and "worst case 83.0 -> 82.0%." in shown


def test_headings_passes_and_classes_show():
    spent = {"forwards": 4200, "backwards": 1100}
    scores = {name: found | (spent if name == "aa" else {}) for name, found in STUDENT.items()}
    by_class = {"compared": {"clean": {"0": score(0.5, 0.4, 0.6, 10)}},
                "model": {name: {"1": score(0.25, 0.2, 0.3, 4), "0": found}
                          for name, found in STUDENT.items()}}
    made = evaluation(teacher=TEACHER, results=scores, headings=("compared", "model"), classes=by_class,
                      findings=[{"check": "few-classes", "unreliable": False, "text": "t", "models": []}])
    shown = tables.markdown(made)
    assert ("|  | compared | model | drop |" in shown
            and "- passes: aa 4.2 k + 1.1 k (samples forwards + backwards)" in shown)
    assert ("## By class (model)" in shown and "| 1 | 4 | 25.0 | 25.0 | 25.0 |" in shown
            and made["findings"][0]["check"] == "few-classes")
    text = rendered(made)
    assert "By class (model)" in text and max(map(len, text.splitlines())) <= 60


# --- figures that cannot mislead --------------------------------------------------------

def doubt(*models, check="zero-gradients", unreliable=True):
    return [{"check": check, "unreliable": unreliable, "text": "it is blind.", "models": list(models)}]


@pytest.mark.parametrize("models,says", [
    ([], ["teacher (unreliable)", "pruned (unreliable)", "drop (unreliable)"]),
    (["pruned"], ["teacher", "pruned (unreliable)", "drop (unreliable)"])])
def test_a_figure_that_must_not_be_believed_says_so_where_it_stands(models, says):
    made = report(findings=doubt(*models))
    text = tables.markdown(made)
    assert tables.headings(made) == says and f"|  | {' | '.join(says)} |\n" in text
    assert ("\n\nUnreliable: clean 98.6 -> 98.7%, " in text
            and "Unreliable: clean" in " ".join(rendered(made).split()))
    assert "(unreliable)" in " ".join(rendered(made).split())
    alone = tables.markdown(evaluation(findings=doubt()))
    assert "|  | accuracy (unreliable) |" in alone and "\nUnreliable: " in alone


def test_a_finding_that_makes_nothing_unreliable_changes_no_heading():
    made = report(findings=doubt(unreliable=False))
    assert tables.headings(made) == ["teacher", "pruned", "drop"]
    assert "Unreliable" not in tables.markdown(made)


def test_what_is_unfinished_stands_in_its_row_and_in_no_headline():
    left = {"teacher": {"aa": {"n": 400, "of": 1000, "accuracy": 0.877}},
            "pruned": {"aa": {"n": 200, "of": 1000}}}
    clean = {"clean": STUDENT["clean"]}
    made = evaluation(results=clean, teacher=clean, unfinished=left)
    assert tables.is_unfinished(made) and not tables.is_unfinished(evaluation())
    for text in (tables.markdown(made), " ".join(rendered(made).split())):
        assert "clean 98.7 -> 98.7%, unfinished: aa." in text and "87.7" not in text and "paired" not in text
    assert "| aa | unfinished, 400 of 1000 | unfinished, 200 of 1000 | - |" in tables.markdown(made)
    one = evaluation(results=clean, unfinished={"model": {"aa": {"n": 0, "of": 1000}}})
    assert "| aa | unfinished, 0 of 1000 |" in tables.markdown(one)


def test_an_attack_that_was_asked_for_and_not_run_falls_short():
    """The model lets no gradient through: what is left is not what was asked for."""
    made = evaluation(attacks=["pgd-10", "aa"])
    assert not tables.falls_short(made)
    assert tables.falls_short(evaluation(attacks=["pgd-10", "aa"], results={"clean": STUDENT["clean"]}))
    assert not tables.falls_short(report(attacks=["aa"]))
    assert tables.falls_short(report(attacks=["aa"], student={"clean": STUDENT["clean"]}))
    assert not tables.falls_short(report())  # of 0.1.0, which did not write down what was asked for


def test_a_finished_weak_attack_is_no_headline_beside_an_unfinished_one():
    scores = {name: score for name, score in STUDENT.items() if name != "aa"} | {"fgsm": STUDENT["clean"]}
    made = evaluation(results=scores, unfinished={"model": {"aa": {"n": 200, "of": 1000}}})
    assert tables.summary(made) == "clean 98.7%, unfinished: aa."


def test_a_pruned_model_that_only_guesses_is_said_in_the_first_line():
    made = report(findings=doubt("pruned", check="near-chance"))
    assert tables.only_guesses(made)
    assert tables.markdown(made).startswith("# lenet.pt pruned to 90% sparsity, near chance: clean 98.7%\n")
    assert not tables.only_guesses(report(findings=doubt("teacher", check="near-chance")))
    assert not tables.only_guesses(evaluation(findings=doubt(check="near-chance")))


def test_a_larger_file_is_not_called_smaller():
    made = report(size={"dense_bytes": 1000, "file_bytes": 2000, "limit_bytes": 900})
    assert "file 2.00 times larger." in tables.summary(made)
    assert "2.0 kB: 2.00 times larger than dense (1.0 kB)" in tables.markdown(made)
