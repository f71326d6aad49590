"""Verdicts as CI systems read them: JUnit XML parsed again, GitHub's files and workflow commands."""
import xml.etree.ElementTree as ET

from pwoa_cli.reports import ci

EVIL = "a|b\n::error::x % <&> \x1b[31m"
VERDICTS = [{"gate": "--min pgd-20=0.4", "passed": True, "text": "fine."},
            {"gate": "--max-drop aa=1", "passed": False, "text": EVIL}]


def test_junit_is_read_back(tmp_path):
    ci.write_junit(tmp_path / "g.xml", VERDICTS, name=EVIL)
    suite = ET.parse(tmp_path / "g.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    passed, failed = suite.findall("testcase")
    assert passed.find("failure") is None and passed.find("system-out").text == "fine."
    assert "<&>" in failed.find("failure").get("message")
    assert ET.fromstring(ci.junit([], name="x").encode()).get("tests") == "0"


def test_github_gets_summary_and_annotations_where_it_asks(tmp_path, monkeypatch):
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    ci.summarise("# Title", VERDICTS)
    assert ci.annotations(VERDICTS) == [] and not list(tmp_path.iterdir())
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    ci.summarise("# Title", VERDICTS)
    ci.summarise("# Other", [])
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# Title\n") and "# Other" in text and "| **failed** |" in text
    row = next(line for line in text.splitlines() if "failed" in line)
    assert row.replace("\\|", "").count("|") == 4
    error, warning = ci.annotations(VERDICTS, ["unreliable: 50% of it", "a note"])
    assert error.startswith("::error title=pwoa --max-drop aa=1::") and "\n" not in error
    assert "%25" in error and warning == "::warning title=pwoa::unreliable: 50%25 of it"
