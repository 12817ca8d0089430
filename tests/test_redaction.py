"""Passwords and tokens in texts."""

from __future__ import annotations

import logging

import pytest

from dmray.errors import SpecError
from dmray.redaction import SecretFilter, has_secret, is_placeholder, refuse_placeholders, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://u:pw@db:5432/x", "postgresql+psycopg2://u:***@db:5432/x"),
        ("at http://me:pa@ss/w:ord@host:5000: refused", "at http://me:***@host:5000: refused"),
        ("HTTPS://tokentoken@host", "HTTPS://***@host"),
        ("http://:pw@host", "http://:***@host"),
        ("http://me:12345@host:5000", "http://me:***@host:5000"),
        ("s3://KEY:sec/ret@bucket/x", "s3://KEY:***@bucket/x"),
        ("https://h/x?a=1&X-Amz-Signature=abc&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("https://h/x?token=abc", "https://h/x?token=***"),
        ("https://account.blob/x?sv=2&sig=a%2Fb", "https://account.blob/x?sv=2&sig=***"),
        ("--mlflow-uri=http://u:pw@h --resume", "--mlflow-uri=http://u:***@h --resume"),
    ],
)
def test_a_secret_is_hidden_and_the_rest_stays(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert has_secret(text)
    assert not has_secret(shown)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////a@b/mlflow.db",
        "http://127.0.0.1:5000/x@y",
        "no server at http://127.0.0.1:5000: ask me@host",
        "abfs://container@account.dfs.core.windows.net/x",
        "postgresql://mlflow@db/x",
        "https://h/x?design=1&author=me",
        "models:/dmray-dt-maze2d@open-expert",
        "",
    ],
)
def test_a_text_without_a_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_log_line_has_no_secret() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 1, "%s does not answer", ("http://me:secret@host",), None)
    assert SecretFilter().filter(record)
    assert record.getMessage() == "http://me:***@host does not answer"


@pytest.mark.parametrize("secret", ["change-me", "CHANGE_ME", "changeme", "<replace-me>", "Please change this"])
def test_a_placeholder_is_no_secret(secret: str) -> None:
    assert is_placeholder(secret)
    with pytest.raises(SpecError, match=r"RAY_AUTH_TOKEN is .* the placeholder of an example"):
        refuse_placeholders({"HOME": "/", "RAY_AUTH_TOKEN": secret})


@pytest.mark.parametrize("secret", ["", "c0ffee", "exchange-me-not", "testing"])
def test_other_secrets_pass(secret: str) -> None:
    refuse_placeholders({"RAY_AUTH_TOKEN": secret, "GREETING": "change-me"})
