from __future__ import annotations

import pytest

pytest.register_assert_rewrite("dmray.testing.engine_contract")
