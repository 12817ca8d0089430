from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def wandb_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B without a network, without this user's settings, and without an API key."""
    wandb = pytest.importorskip("wandb", reason='pip install "dmray[wandb]"')
    here = tmp_path_factory.mktemp("wandb-settings")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
            environment.delenv(name, raising=False)
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "NETRC"):
            environment.setenv(name, str(here / name.lower()))
        environment.setenv("WANDB_ERROR_REPORTING", "false")
        environment.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing answers there
        yield
        wandb.teardown()
