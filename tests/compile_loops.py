"""Compile numba's loops once, before several processes of pytest want them at the same time.

    python -m tests.compile_loops

They are kept on disk (`dmray.models.compiled`): it takes ten seconds in a new checkout, and two afterwards.
"""

from __future__ import annotations

import torch

from dmray.specs import MethodName
from tests.policies.acting import STEPS, act
from tests.policies.windows import random_fields, tiny_policy
from tests.training.trainers import trainer_of

METHODS: tuple[MethodName, ...] = ("dm", "dt")


def main() -> None:
    torch.set_num_threads(1)
    for method in METHODS:
        trainer_of(method, dropout=0.1).step()
        for decode in ("window", "stream:2", "recurrent"):
            act(tiny_policy(method), random_fields(3, STEPS), STEPS, decode)


if __name__ == "__main__":
    main()
