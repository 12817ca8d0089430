"""Take passwords and tokens out of texts: the one function that every message, file and log line with an address uses.

A password is replaced by `***`, so that a reader sees that there was one: `http://user:***@host:5000`. Whoever reads
such an address back takes the password from the environment (`dmray.mlflow_mirror.opening`). And refuse passwords that
are only the placeholders of an example.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping

from dmray.errors import SpecError

HIDDEN = "***"
# user:password@ up to the last @ of the word, since people forget to encode an @ in a password; a colon with digits up
# to the end of the host is a port.
_PORT = r"\d+(?:[/?#,;)'\"\s]|$)"
_PASSWORD = re.compile(rf"(?P<begin>\b[a-z][a-z0-9+.-]*://[^\s/?#@:]*:)(?!{_PORT})\S*(?=@)", re.IGNORECASE)
_TOKEN_AS_USER = re.compile(r"(?P<begin>\bhttps?://)[^\s/?#@:]+(?=@)", re.IGNORECASE)
_NAMES = r"token|secret|passw(?:or)?d|pwd|signature|credential|api[-_]?key|access[-_]?key|account[-_]?key|\bsig\b"
_PARAMETER = re.compile(rf"(?P<begin>[?&][\w.%-]*(?:{_NAMES})[\w.%-]*=)[^&#\s'\"]+", re.IGNORECASE)

_SECRET_NAME = re.compile("TOKEN|SECRET|PASSWORD|ACCESS_KEY")
_PLACEHOLDER = re.compile(r"<?\W*(?:please)?[-_ ]?(?:change|replace|fill)[-_ ]?(?:me|this|it|in)\W*>?", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text`, with `***` for the passwords and tokens of the addresses in it. Doing it twice changes nothing."""
    for pattern in (_PASSWORD, _TOKEN_AS_USER, _PARAMETER):
        text = pattern.sub(rf"\g<begin>{HIDDEN}", text)
    return text


def has_secret(text: str) -> bool:
    """Whether `text` has an address with a password or a token that is not hidden yet."""
    return without_secrets(text) != text


def refuse_placeholders(environment: Mapping[str, str] | None = None) -> None:
    """Check that no secret in the environment (None: this process's) is the placeholder of an example file.

    Raises:
        SpecError: one is.
    """
    for name, value in (os.environ if environment is None else environment).items():
        if _SECRET_NAME.search(name) and is_placeholder(value):
            raise SpecError(
                f"{name} is '{value}', the placeholder of an example, which everybody knows; make a secret: "
                'python -c "import secrets; print(secrets.token_hex(32))"'
            )


def is_placeholder(secret: str) -> bool:
    """Whether a password or a token is a placeholder such as change-me."""
    return _PLACEHOLDER.fullmatch(secret.strip()) is not None


class SecretFilter(logging.Filter):
    """For a handler: takes secrets out of the messages that it writes."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if has_secret(message):
            record.msg, record.args = without_secrets(message), ()
        return True
