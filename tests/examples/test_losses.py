"""The picture of the README shows what docs/results.md says."""
import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("losses", ROOT / "examples/benchmarks/losses.py")
losses = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(losses)


def test_the_curves_are_the_figures_of_the_page():
    resnet18, lenet, resnet20 = losses.curves((ROOT / "docs/results.md").read_text(encoding="utf-8"))
    assert lenet.lost == {90: 0.5, 97: 1.2, 99: 2.6} and lenet.clean == {90: 0.0, 97: -0.1, 99: 0.4}
    assert resnet20.lost == {50: -0.2, 75: 1.1, 90: 7.0} and resnet20.clean == {50: 0.6, 75: 1.0, 90: 4.0}
    assert resnet18.lost == {90: 0.3, 95: 2.1, 99: 12.8} and resnet18.clean == {90: 0.4, 95: 0.9, 99: 5.1}
    assert [one.attack for one in (lenet, resnet20, resnet18)] == ["PGD-40", "PGD-20", "PGD-20 and CW"]


def test_a_picture_is_drawn_and_the_one_in_the_readme_is_small(tmp_path):
    losses.draw(losses.curves((ROOT / "docs/results.md").read_text(encoding="utf-8")), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (ROOT / "docs/losses.png").stat().st_size < 100_000
    assert "(docs/losses.png)" in (ROOT / "README.md").read_text(encoding="utf-8")
