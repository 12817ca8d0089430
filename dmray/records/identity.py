"""What a score depends on beside its trial's spec: two scores share a mean only where all of this is equal.

A trial's spec says which data set, which evaluation and which method. Its ledger says which content the data set had,
which simulator evaluated, and which code trained. `ResultIdentity` has the digests of these. Decided here:

* data: the fingerprint of the data set's content.
* protocol: the evaluation's decode mode, episodes, seed and noise; the task with its horizon and reference scores; the
  releases of the packages that the simulator runs on.
* code: `dmray.records.provenance.DECIDE_NUMBERS`, and the releases of torch and numpy, which hold random generators and
  defaults. Not Python, Ray, kernels and hardware: they change the last bits, as `resources` may.
* method: the package that brings the method, with its version; empty for dmray's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dmray.specs import EvaluationSpec, TrialSpec, content_hash

UNKNOWN = "unknown"
_DIGITS, _SHOWN = 16, 6
_HEX = re.compile("[0-9a-f]{7,}")
_CODE_PACKAGES = ("torch", "numpy")


class ResultIdentity(NamedTuple):
    """Digests, `unknown` where the ledger does not tell; those of attempts that differ are joined by "+"."""

    data: str = UNKNOWN
    protocol: str = UNKNOWN
    code: str = UNKNOWN
    method: str = ""

    @property
    def mixed(self) -> bool:
        """Whether the trial's records are of several identities."""
        return any("+" in part for part in self)

    @property
    def shared(self) -> ResultIdentity:
        """Without the method's package: what must be equal where methods are compared."""
        return self._replace(method="")

    @property
    def digest(self) -> str:
        """One short digest of all parts."""
        return content_hash(list(self))[:_DIGITS]

    def values(self) -> dict[str, str]:
        """Each part by its name, as short as people need it."""
        return {name: _short(value) for name, value in zip(self._fields, self, strict=True)}

    def label(self, parts: Iterable[str]) -> str:
        """The named parts for people, for example "data 3fa9c1, code 20b1d4"."""
        values = self.values()
        return ", ".join(f"{part} {values[part] or 'of dmray'}" for part in parts)


def identity_of(trial: TrialSpec, provenance: Mapping[str, Any]) -> ResultIdentity:
    """The identity of what an attempt at `trial` produced, by the provenance in its ledger."""
    fingerprint, plugins = provenance.get("dataset_fingerprint"), section(provenance, "plugins")
    return ResultIdentity(
        data=str(fingerprint)[:_DIGITS].replace("+", "-") if fingerprint else UNKNOWN,
        protocol=_protocol(trial, provenance, plugins),
        code=code_of(provenance),
        method=str(plugins.get("method") or "").replace("+", "-"),
    )


def joined(identities: Iterable[ResultIdentity]) -> ResultIdentity | None:
    """The identity of a trial whose attempts had these; None if there is none."""
    parts = list(zip(*dict.fromkeys(identities), strict=True))
    return ResultIdentity(*("+".join(dict.fromkeys(values)) for values in parts)) if parts else None


def group_id(trial: TrialSpec, identity: ResultIdentity | None) -> str:
    """The id of a trial's seed group: of its settings, and once it has begun of what its scores depend on beside."""
    return trial.seed_group_id if identity is None else f"{trial.seed_group_id}-{identity.digest}"


def differing_parts(identities: Iterable[ResultIdentity]) -> tuple[str, ...]:
    """The names of the parts in which identities differ."""
    parts = list(zip(*identities, strict=True))
    return tuple(name for name, values in zip(ResultIdentity._fields, parts, strict=False) if len(set(values)) > 1)


def simulator_releases(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The releases of the packages that the attempt's simulator runs on."""
    found = section(provenance, "simulator")
    return {str(name): _release(version) for name, version in found.items()}


def section(provenance: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a record's provenance; empty if it is missing or is no mapping (a ledger that was edited)."""
    found = provenance.get(name)
    return found if isinstance(found, dict) else {}


def _short(value: str) -> str:
    parts = (part if not _HEX.fullmatch(part) else part[:_SHOWN] for part in value.split("+"))
    return "+".join(parts)


def _protocol(trial: TrialSpec, provenance: Mapping[str, Any], plugins: Mapping[str, Any]) -> str:
    task, evaluation = section(provenance, "task"), trial.evaluation
    content = {
        "evaluation": [evaluation.decode, evaluation.episodes, evaluation.seed, *_noise(evaluation)],
        "task": task,
        "simulator": simulator_releases(provenance),
        "plugins": [str(plugins.get(kind) or "") for kind in ("task", "decode")],
    }
    return _digest(content)


def _noise(evaluation: EvaluationSpec) -> list[float]:
    """Empty without noise, so that the identities of earlier results stay."""
    levels = [evaluation.action_noise, evaluation.observation_noise]
    return levels if any(levels) else []


def code_of(provenance: Mapping[str, Any]) -> str:
    """The part `code` of an identity."""
    versions, code = section(provenance, "versions"), provenance.get("code")
    releases = [_release(versions.get(name)) for name in _CODE_PACKAGES]
    if code:
        return _digest([str(code), releases])
    git = section(provenance, "git")  # a ledger of an earlier dmray
    return f"{UNKNOWN}-{_digest([str(git.get('commit')), str(versions.get('dmray')), releases])[:_SHOWN]}"


def _release(version: Any) -> str:
    """A version without the name of the build, such as +cpu: machines of one sweep may have several."""
    return str(version).partition("+")[0]


def _digest(content: Any) -> str:
    try:
        return content_hash(content)[:_DIGITS]
    except ValueError:  # a number of an edited ledger is not finite
        return content_hash(repr(content))[:_DIGITS]
