"""Which trials can train as one batched network (`dmray.training.Pack`), and the order in which packs fill."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence

from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.specs import ResourcesSpec, TrialSpec


def why_unpacked(trial: TrialSpec) -> str | None:
    """Why a trial cannot be packed, in words that follow its method's name; None if it can."""
    if not METHODS[trial.method].backbone.packable:
        return f"has the backbone '{METHODS[trial.method].backbone.name}', which PyTorch cannot batch over trials"
    if trial.training.dtype == "bfloat16":
        return "trains in bfloat16, which PyTorch cannot batch over trials"
    return None


def require_processes(resources: ResourcesSpec) -> None:
    """Check that trials which run one after the other are not to be packed.

    Raises:
        SpecError: they are.
    """
    if resources.trials_per_pack > 1:
        raise SpecError(
            f"resources.trials_per_pack {resources.trials_per_pack}: a local run trains one trial after the other, so "
            "nothing can be packed; add -o resources.trials_per_pack=1, or run it on Ray (without --local)"
        )


def packing_lines(trials: Sequence[TrialSpec], seats: int) -> list[str]:
    """What a plan says about packs: how many trials are packed, and which ones are not and why."""
    if seats == 1:
        return []
    reasons = {trial.trial_id: why_unpacked(trial) for trial in trials}
    unpacked = Counter((trial.method, reason) for trial in trials if (reason := reasons[trial.trial_id]) is not None)
    alike = Counter(pack_key(trial) for trial in trials if reasons[trial.trial_id] is None)
    packed, most = sum(count for count in alike.values() if count > 1), max(alike.values(), default=0)
    few = [
        f"  at most {most} of them can share a pack (seed, learning rate, steps and evaluation may differ), and empty",
        f"  seats take as much time as others: -o resources.trials_per_pack={most}",
    ]
    return [
        f"packed: {packed} of {len(trials)} trials, up to {min(most, seats)} in one network",
        *(few if 0 < most < seats else []),
        *(f"  not packed: {count} of {method}, which {reason}" for (method, reason), count in unpacked.items()),
    ]


def pack_key(trial: TrialSpec) -> str:
    """The same text for trials that can share a pack: they differ in seed, learning rate, steps and evaluation only."""
    shared = trial.model_dump_json(exclude={"seed": True, "training": {"learning_rate", "steps"}, "evaluation": True})
    return f"{shared} {trial.evaluation.return_scale}"


def packs_together(trials: Sequence[TrialSpec], seats: int) -> list[TrialSpec]:
    """The trials in the same order, except that the next `seats - 1` of its pack follow the first trial of each pack.

    So the seats of a pack fill at once; a trial that cannot be packed stays where it is.
    """
    if seats == 1:
        return list(trials)
    waiting: dict[str, deque[TrialSpec]] = defaultdict(deque)
    for trial in trials:
        waiting[pack_key(trial)].append(trial)
    ordered: list[TrialSpec] = []
    started: set[str] = set()
    for trial in trials:
        if trial.trial_id not in started:
            line = waiting[pack_key(trial)]
            together = [line.popleft() for _ in range(1 if why_unpacked(trial) else min(seats, len(line)))]
            ordered += together
            started |= {each.trial_id for each in together}
    return ordered
