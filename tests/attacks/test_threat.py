"""eps and norm as people type them."""
import pytest

from pwoa_cli.attacks.threat import parse_eps, parse_norm
from pwoa_cli.errors import InputError


@pytest.mark.parametrize("text,norm,value", [
    ("8/255", "linf", 8 / 255), ("0.3", "linf", 0.3), (0.3, "linf", 0.3), (" 4 / 255 ", "linf", 4 / 255),
    ("1", "linf", 1.0), ("2", "l2", 2.0), ("128/255", "l2", 128 / 255), ("3e-2", "linf", 0.03)])
def test_eps_is_read(text, norm, value):
    assert parse_eps(text, norm=norm) == value


@pytest.mark.parametrize("text,norm,says", [
    ("8", "linf", "Did you mean 8/255"), (8, "linf", "Did you mean 8/255"),
    ("300", "linf", r"norm is linf\.$"), ("510/255", "linf", r"norm is linf\.$"),
    ("-0.1", "linf", "above 0"), ("-8/255", "l2", "above 0"), ("0", "linf", "nothing to attack"),
    ("nan", "linf", "finite"), ("inf", "l2", "finite"), ("abc", "linf", "not a number"),
    ("8/0", "linf", "not a number"), ("8/", "linf", "not a number"), ("0,03", "linf", "not a number")])
def test_wrong_eps_is_refused(text, norm, says):
    with pytest.raises(InputError, match=says) as caught:
        parse_eps(text, norm=norm)
    assert "8/255" in caught.value.hint


def test_norms():
    assert [parse_norm(t) for t in ("Linf", "inf", "L_inf", "l2", "L2", "2")] == ["linf"] * 3 + ["l2"] * 3
    with pytest.raises(InputError, match="Did you mean linf"):
        parse_norm("linff")
