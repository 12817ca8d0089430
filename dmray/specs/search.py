"""The search section of a sweep file: how many settings are tried, on which seeds, and how one of them is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmray.frozen import Count, Spec
from dmray.specs.trial import Seed

DEFAULT_ROUNDS = 5


class SearchSpec(Spec):
    """Try settings on selection seeds, choose the one with the best score, and run it with the sweep's `seeds`.

    A setting has one value for each field of `models`, `training` and `overrides` that has several. `algorithm`
    "random" draws settings, "tpe" proposes them by the scores of earlier ones (Optuna's Tree-structured Parzen
    Estimator), "grid" tries all. `settings`: the number that are tried for each method, on each data set or, with
    `choose` "overall", on all data sets together; every method has the same number, so that none is searched for
    longer. "tpe" proposes them in `rounds` (5 if left out): each round sees the scores of those before it.

    `seeds` are the selection seeds. They are none of the sweep's seeds: the score by which a setting was chosen is
    optimistic. `by`: the score that decides, `last` (of the final weights) or `best` (during training); the mean over
    selection seeds, and with `choose` "overall" over data sets. `seed`: of the algorithm.
    """

    algorithm: Literal["random", "tpe", "grid"] = "tpe"
    settings: Annotated[int, Field(gt=0, le=100_000)] | None = None
    rounds: Count | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    choose: Literal["per_dataset", "overall"] = "per_dataset"
    by: Literal["last", "best"] = "last"
    seed: Seed = 0

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> SearchSpec:
        if self.algorithm == "grid":
            if self.settings is not None:
                raise ValueError("settings: algorithm grid tries all settings; remove the field")
        elif self.settings is None:
            raise ValueError(f"settings: say how many settings algorithm {self.algorithm} tries, for example 20")
        if self.algorithm != "tpe" and self.rounds is not None:
            raise ValueError(f"rounds: only tpe looks at the scores of earlier rounds, not {self.algorithm}; remove it")
        if self.rounds is not None and self.settings is not None and self.rounds > self.settings:
            raise ValueError(f"rounds {self.rounds}: more than the {self.settings} settings")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is given twice")
        return self

    def round_sizes(self, settings: int) -> tuple[int, ...]:
        """The number of settings that are proposed in each round; `settings` in all."""
        rounds = min(self.rounds or DEFAULT_ROUNDS, settings) if self.algorithm == "tpe" else 1
        return tuple(settings // rounds + (place < settings % rounds) for place in range(rounds))
