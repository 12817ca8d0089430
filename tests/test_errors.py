from __future__ import annotations

import pickle

import pytest

from dmray import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", CLASSES)
def test_errors_cross_a_process_with_their_message(error: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(error("what to do")))
    assert type(again) is error
    assert str(again) == "what to do"


@pytest.mark.parametrize("error", CLASSES)
def test_a_message_shows_no_control_characters_and_has_an_end(error: type[Exception]) -> None:
    raised = error("/data/\x1b[31m\u202e\ud800é\nsecond line: " + "x" * 100_000)
    assert str(raised).startswith("/data/\\x1b[31m\\u202e\\ud800é\nsecond line: xxx")
    assert len(str(raised)) < 10_000
    assert str(pickle.loads(pickle.dumps(raised))) == str(raised)
