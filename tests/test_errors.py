"""What parsers raise becomes one sentence, and no name out of a file can forge what a terminal shows."""
import pytest

from pwoa_cli.errors import InputError, PwoaError, reading


@pytest.mark.parametrize(("raised", "said"), [
    (ValueError("no \x1b[2J\n number."), "f cannot be read as JSON, it is broken or truncated: no ?[2J "
                                            "number."),
    (KeyError(), "KeyError."), (RecursionError("x"), "it is nested too deep."),
    (MemoryError(), "more memory than there is."), (OSError("short"), "truncated: short."),
    (FileNotFoundError(2, "No such file"), "f cannot be read: No such file."),
    (ZeroDivisionError("x" * 5000), "x" * 120 + "."), (UserWarning("odd"), ": odd.")])
def test_whatever_a_parser_raises_is_a_sentence(raised, said):
    with pytest.raises(InputError) as caught, reading("f", "JSON", hint="Again."):
        raise raised
    assert caught.value.message.endswith(said) and caught.value.hint == "Again."
    assert caught.value.__cause__ is raised


def test_a_sentence_stays_as_it_is_and_an_interrupt_goes_through():
    for error in (InputError("a", hint="b"), PwoaError("c"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, reading("f", "JSON", hint=""):
            raise error
        assert caught.value is error


def test_control_characters_are_not_shown_and_lines_stay():
    error = InputError("a\x1b[2J\nb\x07", hint="c\r")
    assert (error.message, str(error), error.hint) == ("a?[2J\nb?", "a?[2J\nb?", "c?")
