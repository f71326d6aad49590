"""JSON and TOML of plain values."""
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pwoa_cli.errors import InputError
from pwoa_cli.files.plain import read_json, write_json, write_toml


def test_json_has_no_nan_and_takes_numpy_and_paths():
    value = {"a": math.nan, "b": [math.inf, (1, np.float32(0.5))], "c": np.int64(3), "d": Path("x"),
             "e": None, "f": True, "g": np.nan}
    write_json(Path("v.json"), value)
    assert read_json(Path("v.json")) == {"a": None, "b": [None, [1, 0.5]], "c": 3, "d": "x", "e": None,
                                         "f": True, "g": None}


@pytest.mark.parametrize(("content", "message"),
                         [("", "cannot be read as JSON"), ("[1]", "holds a JSON list"),
                          ("\0\xff", "cannot be read as JSON"),
                          ('{"a": NaN}', ".*: NaN is no number of JSON"),
                          ('{"a": 1e999}', ".*: 1e999 is no number"),
                          ("[" * 9999, ".*: it is nested too deep"),
                          ("9" * 5000, "cannot be read as JSON")])
def test_read_json_names_the_file_and_the_fault(content, message):
    Path("r.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=f"r.json {message}"):
        read_json(Path("r.json"))
    with pytest.raises(InputError, match="other.json cannot be read"):
        read_json(Path("other.json"))


def test_toml_round_trip():
    table = {"lr": 1e-5, "n": 3, "name": 'a "b" [x]\n', "on": True, "none": None, "out": Path("a/b"),
             "list": (1, 2),
             "w": np.float64(0.25), "nan": math.nan, "versions": {"torch": "2.15.0+cu132", "none": None}}
    write_toml(Path("config.toml"), table)
    back = tomllib.loads(Path("config.toml").read_text())
    assert math.isnan(back.pop("nan"))
    assert back == {"lr": 1e-5, "n": 3, "name": 'a "b" [x]\n', "on": True, "out": "a/b", "list": [1, 2],
                    "w": 0.25,
                    "versions": {"torch": "2.15.0+cu132"}}
