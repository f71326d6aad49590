"""Security curves: radii as they are typed, points, what makes a curve doubtful."""
import pytest
import torch

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import security_curve
from pwoa_cli.evaluation.evaluate import evaluate
from pwoa_cli.evaluation.results import Evaluation, Finding, Result

N = 400


def line(name, correct):
    flags = torch.as_tensor(correct)
    nobody = torch.zeros_like(flags)
    return Result(name, flags, done=~nobody, attacked=~nobody, broken=~flags,
                  distance=torch.full(flags.shape, torch.nan), seconds=0.0)


def found(holds, *, unfinished=(), findings=()):
    """An evaluation of one attack that the first `holds` of N samples withstand."""
    lines = {"clean": line("clean", torch.ones(N, dtype=torch.bool))}
    lines |= {} if unfinished else {"pgd-20": line("pgd-20", torch.arange(N) < holds)}
    return Evaluation(lines, findings=findings, broken_by=[""] * N, unfinished=unfinished)


@pytest.mark.parametrize(("text", "radii"), [
    ("0.1,0.3", (0.1, 0.3)), ("0.3,0.1", (0.1, 0.3)), ("0,0.2", (0.2, 0.3)), ("0", (0.3,)),
    ("0.3000000001", (0.3,)), ("51/255,0.3,0.2", (0.2, 0.3))])
def test_the_radii_rise_and_hold_the_threats_own_once(text, radii):
    assert security_curve.radii(text, norm="linf", threat=0.3) == radii


@pytest.mark.parametrize(("text", "words"), [
    ("0.1,,0.2", "a radius is missing"), ("", "a radius is missing"), ("0.1,x", "'x' is not a number"),
    ("0.1,-1", "above 0"), ("2", "in \\[0,1\\]"), ("nan", "finite"), ("1/0", "not a number")])
def test_what_is_no_radius_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        security_curve.radii(text, norm="linf", threat=0.3)


def test_the_points_of_a_linear_model_are_its_closed_form():
    """Two classes, logits (x, 1/2): x = 0.5 + k/100 holds against linf eps where k/100 > eps."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[1].bias.copy_(torch.tensor([0.0, 0.5]))
    x = (0.5 + (torch.arange(20) + 0.5) / 100).reshape(20, 1, 1, 1)

    def at(eps):
        return {"model": evaluate(model, x, torch.zeros(20, dtype=torch.long), attacks="pgd-20,fgsm",
                                  norm="linf", eps=eps)}

    radii = (0.05, 0.1, 0.15)
    points = security_curve.points(security_curve.measured_at(radii, at(0.1), at, at=0.1), at=0.1)
    assert [point["eps"] for point in points] == [0, *radii]
    assert [point["scores"]["model"]["accuracy"] for point in points] == [1.0, 0.75, 0.5, 0.25]
    assert all(point["scores"]["model"]["n"] == 20 for point in points)


@pytest.mark.parametrize(("small", "large", "doubted"), [(200, 100, False), (200, 200, False),
                                                         (200, 203, False), (100, 200, True)])
def test_a_curve_that_rises_beyond_chance_is_unreliable(small, large, doubted):
    curve = {0.1: {"a": found(small)}, 0.2: {"a": found(large)}}
    made = security_curve.doubts(curve)
    assert made[0.1] == [] and bool(made[0.2]) == doubted
    for at in (0.1, 0.2):  # of the threat's own radius it is a finding of the report
        assert ("findings" in security_curve.points(curve, at=at)[2]) == (doubted and at == 0.1)
    if doubted:
        assert made[0.2][0]["text"].startswith("100 samples that broke within eps 0.1 hold at 0.2, against 0")
        assert made[0.2][0]["unreliable"]


@pytest.mark.parametrize("counts", [(300, 100, 200, 198, 196), (100, *range(105, 155, 5))], ids=str)
def test_what_lies_above_any_smaller_radius_is_unreliable(counts):
    """Only neighbours were compared: the plateau behind a rise passed its gate, and a slow rise too."""
    curve = {(i + 1) / 100: {"a": found(count)} for i, count in enumerate(counts)}
    made = list(security_curve.doubts(curve).values())
    assert [bool(doubt) for doubt in made[-2:]] == [True, True] and not made[0] and not made[1]
    assert made[-1][0]["text"].startswith(f"{counts[-1] - 100} samples that broke within eps ")


def test_what_time_did_not_suffice_for_has_no_point():
    threat = {"a": found(0, unfinished=["pgd-20"])}
    curve = security_curve.measured_at((0.1, 0.2), threat, lambda eps: pytest.fail("no time is left"), at=0.1)
    assert [point["scores"].keys() for point in security_curve.points(curve, at=0.1)] == [{"a"}, set(), set()]
    assert security_curve.doubts(curve) == {0.1: [], 0.2: []}


def test_what_makes_a_radius_unreliable_stands_at_its_point_alone():
    doubt = Finding("masked", "gradients are masked", True)
    curve = {eps: {"a": found(100), "b": found(90, findings=[doubt] if eps == 0.3 else [])}
             for eps in (0.1, 0.2, 0.3)}
    points = security_curve.points(curve, at=0.2)
    assert [point.get("findings") for point in points] == [None, None, None, [
        {"check": "masked", "text": "gradients are masked", "unreliable": True, "models": ["b"]}]]
