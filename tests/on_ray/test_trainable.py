"""Which failures Ray tries again."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, RayTaskError

from dmray.errors import DatasetError, DatasetUnavailableError, StoreUnavailableError
from dmray.on_ray.trainable import is_transient


def test_only_a_failure_from_outside_is_tried_again() -> None:
    assert is_transient(ActorDiedError())
    assert is_transient(OSError("No space left on device"))
    assert is_transient(DatasetUnavailableError("a download that broke off"))
    assert is_transient(StoreUnavailableError("a store that does not answer"))
    assert not is_transient(DatasetError("a broken file"))
    assert not is_transient(ValueError("a bug"))
    in_an_actor = RayTaskError("rollout", "a traceback", ValueError("a bug in an actor"))
    assert not is_transient(in_an_actor)
    assert not is_transient(RayTaskError("evaluate", "a traceback", in_an_actor))
    assert is_transient(RayTaskError("evaluate", "a traceback", ActorDiedError()))
