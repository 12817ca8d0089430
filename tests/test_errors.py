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
