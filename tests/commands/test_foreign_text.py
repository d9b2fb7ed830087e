"""What comes from files, models and rewards reaches the terminal as text that steers nothing."""

import logging

import pytest

from memdiff.errors import RewardError
from memdiff.runtime.exit_codes import guarded, harmless

HOSTILE = "a\x1b[31mred\x1b]0;title\x07 \x9b2J\u202eevil\r\nsecond\x00 line \u732b"
SHOWN = r"a\x1b[31mred\x1b]0;title\x07 \x9b2J\u202eevil second\x00 line \u732b".replace(r"\u732b", "\u732b")


def test_control_characters_are_written_out():
    assert harmless(f"got {'x' * 5000}, not y") == f"got {'x' * 500}... not y"
    assert harmless(HOSTILE) == SHOWN and harmless("two  dogs, caf\u00e9") == "two dogs, caf\u00e9"


def test_errors_and_warnings_are_harmless(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A reward's exception, and a warning that quotes a file; without pytest's own handlers, as in a program."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def action() -> None:
        logging.getLogger("memdiff.test").warning("of %s", HOSTILE)
        raise RewardError(f"reward said {HOSTILE}")

    with pytest.raises(SystemExit) as ended:
        guarded(action)
    assert ended.value.code == 3
    assert capsys.readouterr().err == f"of {SHOWN}\nmemdiff: error[3]: reward said {SHOWN}\n"
