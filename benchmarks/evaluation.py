"""Seconds of 100 full evaluation episodes, by method, decode mode and actors, beside the loop that is published.

    python benchmarks/evaluation.py [--quick] [--only hopper-dm] [--json FILE]
    python benchmarks/evaluation.py --training [--json FILE]

Networks of width 128, 6 layers, K 20, random weights (time does not depend on them); Hopper without its early end, so
that every episode is 1000 steps. Actors are processes of one thread, each with cohorts of 50; what is timed is what an
evaluation actor does with a cohort: build the policy and the simulators, roll out. Physics is `engine.step` and
`engine.reset`, policy `decoder.decide`, overhead all else. Where a step costs the same at any age, fewer steps are run
(the column says how many) and the mean of those after the first K stands for the rest.

The loop is `dmray.testing.one_env_loop`: one environment, a batch of one, gradients on, the window run again at each
step with the plain PyTorch scan; the mean of its steps times those of 100 episodes.

"GEMM" is a bound for the policy: the matrix products of one decision alone, their shapes taken from a profile.

With `--training` it trains DM through the real trial loop instead, with an evaluation actor of Ray that is kept busy
and without, in turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timing import in_turns, write_record

from dmray.methods import METHODS as METHODS_BY_NAME
from dmray.models import BackboneConfig
from dmray.policies import PolicyRecipe, PolicyShape, PolicySnapshot, SequencePolicy, make_decoder, snapshot
from dmray.rollout import EvaluationRequest, cohorts, make_engine, roll_out
from dmray.rollout.simulators.envpool import EnvpoolEngine, EpisodePool
from dmray.specs import MethodName
from dmray.tasks import TASKS, Task
from dmray.testing.one_env_loop import one_env_loop

EPISODES, COHORT = 100, 50
MODEL = BackboneConfig()  # sizes that every method has
PROMISED = {"window": 20.0, "stream:2": 100.0, "recurrent": 200.0}  # times faster, HDM and DM, two actors
TRAIN_STEPS, TRAIN_ROUNDS = 200, 3


@dataclass(frozen=True)
class Cell:
    """What is measured: `steps` of each episode are run (0: all)."""

    task: str
    method: MethodName
    mode: str
    actors: int
    steps: int = 0

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}-{self.mode}-{self.actors}"


@dataclass(frozen=True)
class Seconds:
    """Of whole evaluations: wall time, CPU time of all threads, and what of the wall time each part took."""

    wall: float
    cpu: float
    physics: float
    policy: float

    @property
    def overhead(self) -> float:
        return self.wall - self.physics - self.policy


CELLS = (
    *(Cell("hopper", method, "window", actors, 50) for method in ("hdm", "dm") for actors in (1, 2)),
    *(
        Cell("hopper", method, mode, actors, 220)
        for method in ("hdm", "dm")
        for mode in ("stream:2", "recurrent")
        for actors in (1, 2)
    ),
    *(Cell("hopper", method, "window", 2, 50) for method in ("hdt", "dt")),
    *(Cell("hopper", method, "stream:2", 2, 220) for method in ("hdt", "dt")),
    *(Cell("hopper", method, "recurrent", 2) for method in ("hdt", "dt")),  # a cache grows: every step is run
    *(Cell(task, "dm", "stream:2", 2, 120) for task in ("halfcheetah", "maze2d-medium", "antmaze-medium")),
    Cell("kitchen-complete", "dm", "stream:2", 2, 60),
)


class FullLength(EnvpoolEngine):
    """Hopper that goes on after a fall."""

    def __init__(self, task: Task, num_episodes: int) -> None:
        super().__init__(task, num_episodes)
        self._pool = EpisodePool(task, task.env_id, num_episodes, {"terminate_when_unhealthy": False})


class Timed:
    """Sums up what calls of `methods` take."""

    def __init__(self, inner: Any, methods: tuple[str, ...]) -> None:
        self._inner, self._methods = inner, methods
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._inner, name)
        return self._timed(function) if name in self._methods else function

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            start = time.perf_counter()
            result = function(*given)
            self.seconds += time.perf_counter() - start
            return result

        return call


def policy_of(task: Task, method: MethodName) -> SequencePolicy:
    torch.manual_seed(0)
    shape = PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
    return SequencePolicy(
        PolicyRecipe(method, METHODS_BY_NAME[method].config(), "paper", shape, task.return_scale)
    ).eval()


def engine_of(task: Task, rows: int) -> Any:
    return FullLength(task, rows) if task.family == "hopper" else make_engine(task, rows)


def rolled_out(weights: PolicySnapshot, request: EvaluationRequest, number: int) -> Seconds:
    """One cohort; a truncated one stands for a whole."""
    marks: list[tuple[float, float, float, float]] = []
    wall, cpu = time.perf_counter(), time.process_time()

    def mark(*_: object) -> None:
        now = (time.perf_counter() - wall, time.process_time() - cpu)
        marks.append((*now, engine.seconds, decoder.seconds))

    policy, cohort = weights.build(), cohorts(request)[number]
    with closing(engine_of(request.task, len(cohort.rows))) as bare:
        engine = Timed(bare, ("reset", "step"))
        decoder = Timed(make_decoder(policy, request.decode, len(cohort.rows)), ("decide",))
        roll_out(decoder, engine, request, cohort, watch=mark)
    mark()
    done, first = len(marks) - 1, min(MODEL.context_length, len(marks) - 1)
    early, late, end = (np.array(marks[place]) for place in (first - 1, done - 1, done))
    rest = TASKS[request.task.name].horizon - done
    per_step = (late - early) / max(1, done - first)
    return Seconds(*(end + rest * per_step).tolist())


def actor(orders: Any, answers: Any, start: Any) -> None:
    """An evaluation actor: takes cells, warms up, waits for the others, rolls its cohorts out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while (order := orders.get()) is not None:
        weights, request, mine = order
        warm = replace(request, episodes=2, cohort_size=2, task=replace(request.task, horizon=3))
        rolled_out(weights, warm, 0)
        start.wait()
        answers.put([rolled_out(weights, request, number) for number in mine])


class Actors:
    """Two processes, of which a cell uses one or both at once."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._answers = context.SimpleQueue()
        self._hands, self._barriers = [], [context.Barrier(count) for count in (1, 2)]
        for count, barrier in zip((1, 2), self._barriers, strict=True):
            queues = [context.SimpleQueue() for _ in range(count)]
            for queue in queues:
                context.Process(target=actor, args=(queue, self._answers, barrier), daemon=True).start()
            self._hands.append(queues)

    def evaluate(self, cell: Cell) -> Seconds:
        """100 episodes; the wall time of several actors is the longest of them, shares are means."""
        task = TASKS[cell.task]
        weights = snapshot(policy_of(task, cell.method))
        target = task.target_returns[0] if cell.method in ("dt", "dm+r") else None
        short = replace(task, horizon=cell.steps or task.horizon)
        request = EvaluationRequest(short, EPISODES, 0, cell.mode, (target,), COHORT)
        queues = self._hands[cell.actors - 1]
        for number, queue in enumerate(queues):
            queue.put((weights, request, list(range(number, len(cohorts(request)), cell.actors))))
        each = [_sum(self._answers.get()) for _ in queues]
        wall, cpu = max(part.wall for part in each), sum(part.cpu for part in each)
        share = wall / sum(part.wall for part in each)
        return Seconds(wall, cpu, *(share * sum(getattr(part, of) for part in each) for of in ("physics", "policy")))

    def close(self) -> None:
        for queue in (queue for queues in self._hands for queue in queues):
            queue.put(None)


def _sum(parts: list[Seconds]) -> Seconds:
    return Seconds(*np.array([list(asdict(part).values()) for part in parts]).sum(axis=0).tolist())


def loop_seconds(task: Task, method: MethodName, steps: int) -> float:
    """Of 100 full episodes, one environment at a time."""
    one = replace(task, engine="gymnasium") if task.engine == "envpool" else task
    policy, live = policy_of(task, method), np.zeros(1, dtype=np.int64)
    with closing(make_engine(one, 1)) as engine:

        def step(action: np.ndarray) -> tuple[np.ndarray, float, bool]:
            done = engine.step(action[None], live)
            fell = bool(done.terminated[0])  # begun again, so that the loop goes on
            return (engine.reset([1]) if fell else done.observations)[0], float(done.rewards[0]), False

        loop = one_env_loop(policy, engine.reset([0])[0], step, task.horizon, task.target_returns[0])
        torch.use_deterministic_algorithms(True)
        for _ in range(3):
            next(loop)
        spent = []
        for _ in range(steps):
            start = time.perf_counter()
            next(loop)
            spent.append(time.perf_counter() - start)
        torch.use_deterministic_algorithms(False)
    return EPISODES * task.horizon * float(np.mean(spent))


def gemm_ms(task: Task, method: MethodName, mode: str) -> tuple[float, float]:
    """Milliseconds of one decision for a cohort, and of its matrix products alone."""
    policy = policy_of(task, method)
    decoder = make_decoder(policy, mode, COHORT)
    seen, targets = np.zeros((COHORT, task.observation_dim), dtype=np.float32), np.zeros(COHORT)
    for _ in range(MODEL.context_length + 1):
        decoder.decide(seen, targets)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        decoder.decide(seen, targets)
    products = [_product(event.name, event.input_shapes) for event in profile.events() if event.name in _PRODUCTS]
    with torch.inference_mode():
        times = in_turns(
            {
                "decision": lambda: decoder.decide(seen, targets),
                "products": lambda: [a @ b for a, b in products],
            },
            rounds=9,
        )
    return 1e3 * median(times["decision"]), 1e3 * median(times["products"])


_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")


def _product(name: str, shapes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices of these shapes, the second as a layer's weights lie in memory."""
    left, right = shapes[1:3] if "addmm" in name else shapes[:2]
    return torch.randn(left), torch.randn(*right[:-2], right[-1], right[-2]).transpose(-1, -2)


def training_rates() -> dict[str, list[float]]:
    """Steps a second of a DM trial, by whether an evaluation actor works beside it all the time, in turns."""
    import ray

    from dmray.on_ray.evaluation_pool import NAMESPACE, EvaluationPool, RemoteEvaluation
    from dmray.specs import ResourcesSpec

    ray.init(
        "local", namespace=NAMESPACE, num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    pool = EvaluationPool.start(ResourcesSpec(), "benchmark")
    service = RemoteEvaluation(pool.dispatcher_name)
    rates: dict[str, list[float]] = {"alone": [], "with evaluations": []}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(TRAIN_ROUNDS):
                for name, every in (("alone", TRAIN_STEPS), ("with evaluations", 20)):
                    rates[name].append(_trained(Path(folder), f"round{number}-{every}", every, service))
    finally:
        ray.shutdown()
    return rates


def _trained(storage: Path, name: str, every: int, service: Any) -> float:
    from dmray.planning.plan import plan
    from dmray.records import SweepFolder
    from dmray.specs import SweepSpec
    from dmray.trial.job import TrialJob
    from dmray.trial.run import run_trial

    sweep = SweepSpec.model_validate(
        {
            "name": name,
            "datasets": [{"name": "made", "task": "hopper", "generate": {"behaviour": "random", "transitions": 4000}}],
            "grid": [{"methods": ["dm"], "models": [MODEL.model_dump()]}],
            "seeds": [0],
            "training": {"steps": TRAIN_STEPS},
            "evaluation": {"every_steps": every, "decode": "stream:2"},
            "resources": {"when_evaluations_lag": "skip", "max_pending_evaluations": 2},
            "storage": str(storage),
        }
    )
    (trial,) = plan(sweep).trials
    done = run_trial(TrialJob.of(trial, sweep, SweepFolder(storage, name)), service)
    return TRAIN_STEPS / done.train_s


def chosen(only: str, quick: bool) -> Iterator[Cell]:
    for cell in CELLS:
        if cell.name.startswith(only) and (not quick or (cell.task == "hopper" and cell.method == "dm")):
            yield replace(cell, steps=min(cell.steps, 60)) if quick and cell.steps else cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cells whose name (task-method-mode-actors) begins so")
    parser.add_argument("--quick", action="store_true", help="DM in Hopper, few steps: a minute")
    parser.add_argument("--training", action="store_true", help="training beside evaluation, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    here = Path(__file__)
    if options.training:
        training(options.json or here.with_name("evaluation_beside_training.json"))
    else:
        rollouts(options.json or here.with_suffix(".json"), options.only, options.quick)


def training(record: Path) -> None:
    rates = training_rates()
    alone, beside = (median(rates[name]) for name in ("alone", "with evaluations"))
    Console().print(f"training: {alone:.1f} steps/s alone, {beside:.1f} beside evaluation: {beside / alone:.3f}")
    _write(record, [{"steps_per_s": rates, "ratio": beside / alone}])


def rollouts(record: Path, only: str, quick: bool) -> None:
    table = Table(title=f"{EPISODES} full episodes, 128 x 6, K {MODEL.context_length}", box=None)
    for heading in ("task", "method", "decode", "actors", "wall s", "CPU s", "physics", "policy", "overhead",
                    "policy / GEMM", "loop s", "times faster", "promised", "steps"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("task", "method", "decode") else "right")
    results, loops, bounds, actors = [], {}, {}, Actors()
    for cell in chosen(only, quick):
        task = TASKS[cell.task]
        if (cell.task, cell.method) not in loops:
            loops[cell.task, cell.method] = loop_seconds(task, cell.method, 20 if quick else 60)
        if cell.task == "hopper" and (cell.method, cell.mode) not in bounds:
            bounds[cell.method, cell.mode] = gemm_ms(task, cell.method, cell.mode)
        spent, loop = actors.evaluate(cell), loops[cell.task, cell.method]
        decision, products = bounds.get((cell.method, cell.mode), (None, None))
        aimed = cell.task == "hopper" and cell.actors == 2 and cell.method in ("hdm", "dm")
        promised = PROMISED[cell.mode] if aimed else None
        results.append({
            **asdict(cell), **asdict(spent), "overhead": spent.overhead, "one_env_loop_s": loop,
            "times_faster": loop / spent.wall, "promised": promised, "decision_ms": decision, "gemm_ms": products,
        })  # fmt: skip
        table.add_row(
            cell.task, cell.method.upper(), cell.mode, str(cell.actors), f"{spent.wall:.1f}", f"{spent.cpu:.1f}",
            *(f"{100 * part / spent.wall:.1f} %" for part in (spent.physics, spent.policy, spent.overhead)),
            f"{decision / products:.2f}" if decision and products else "", f"{loop:,.0f}", f"{loop / spent.wall:.0f}",
            f"{promised:.0f}" if promised else "", str(cell.steps or task.horizon),
        )  # fmt: skip
    actors.close()
    Console(width=170).print(table)
    _write(record, results)


def _write(record: Path, results: list[dict[str, Any]]) -> None:
    settings = {"model": MODEL.model_dump(), "episodes": EPISODES, "cohort_size": COHORT, "cores": os.cpu_count()}
    write_record(record, {**settings, "load_1min": os.getloadavg()[0]}, results)


if __name__ == "__main__":
    main()
