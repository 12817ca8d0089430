"""All task families: dmray's own, and those that other packages bring under the entry-point group `dmray.tasks`.

Other packages are loaded only when a name is not dmray's own, or when all names are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Generic, TypeVar

from dmray.errors import PluginError, SpecError
from dmray.plugins import load_plugins
from dmray.registry import lookup, unknown
from dmray.tasks import families as built_in_files
from dmray.tasks.d4rl import MUJOCO
from dmray.tasks.family import RANDOM, TaskFamily
from dmray.tasks.task import DatasetEntry, Task

if TYPE_CHECKING:
    from dmray.specs import DatasetSpec  # so that listing data sets does not load what parses sweeps

GROUP = "dmray.tasks"
MADE = "made"
K = TypeVar("K")
V = TypeVar("V")


def _built_in() -> tuple[TaskFamily, ...]:
    names = [module.name for module in iter_modules(built_in_files.__path__)]
    return tuple(family for name in names for family in import_module(f"{built_in_files.__name__}.{name}").FAMILIES)


BUILT_IN = _built_in()


def all_families() -> tuple[TaskFamily, ...]:
    """dmray's own families, then those of other packages.

    Raises:
        PluginError: two of them define the same thing; the message names both.
    """
    plugins = load_plugins(GROUP, TaskFamily)
    sources = {name: "dmray" for family in BUILT_IN for name in _names(family)}
    for plugin in plugins:
        for what in _names(plugin.value):
            if what in sources:
                raise PluginError(
                    f"{plugin.origin} and {sources[what]} both define {what}; uninstall one of them, or rename it"
                )
        sources |= dict.fromkeys(_names(plugin.value), plugin.origin)
    return (*BUILT_IN, *(plugin.value for plugin in plugins))


def package_of_task(task: Task) -> str | None:
    """The name and the version of the package that brings a task's family; None for dmray's own."""
    if any((family.protocol, family.name) == (task.protocol, task.family) for family in BUILT_IN):
        return None
    found = load_plugins(GROUP, TaskFamily)
    packages = [
        each.package for each in found if (each.value.protocol, each.value.name) == (task.protocol, task.family)
    ]
    return packages[0] if packages else None


def _names(family: TaskFamily) -> list[str]:
    """What no other family may define too."""
    simulators = [] if family.simulator is None else [f"the simulator of engine '{family.engine}'"]
    return [
        f"the family '{family.name}' of protocol '{family.protocol}'",
        *(f"task '{task.name}'" for task in family.tasks),
        *(f"data set '{name}'" for name in (*(entry.name for entry in family.datasets), *family.retired)),
        *simulators,
    ]


class _View(Mapping[K, V], Generic[K, V]):
    """What all families have of one kind, by name; a name of dmray's own is found without loading other packages."""

    def __init__(self, select: Callable[[TaskFamily], Mapping[K, V]]) -> None:
        self._select = select

    def __getitem__(self, key: K) -> V:
        own = self._own
        return own[key] if key in own else self._all()[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @cached_property
    def _own(self) -> dict[K, V]:
        return self._merged(BUILT_IN)

    def _all(self) -> dict[K, V]:
        return self._merged(all_families())

    def _merged(self, families: Sequence[TaskFamily]) -> dict[K, V]:
        return {key: value for family in families for key, value in self._select(family).items()}


FAMILIES: Mapping[tuple[str, str], TaskFamily] = _View(lambda family: {(family.protocol, family.name): family})
TASKS: Mapping[str, Task] = _View(lambda family: {task.name: task for task in family.tasks})
DATASETS: Mapping[str, DatasetEntry] = _View(lambda family: {entry.name: entry for entry in family.datasets})
RETIRED: Mapping[str, str] = _View(lambda family: family.retired)
PROTOCOLS: Mapping[str, str] = _View(lambda family: {family.protocol: family.protocol})  # a set of names


def entry_of(name: str) -> DatasetEntry:
    """The published data set of that name.

    Raises:
        SpecError: there is none (with the nearest name), or it is one that should not be used (with the reason).
    """
    if name in DATASETS:
        return DATASETS[name]
    if name in RETIRED:
        raise SpecError(f"data set '{name}': {RETIRED[name]}")
    raise SpecError(unknown("data set", name, DATASETS))


def find_names(given: str, protocol: str | None = None) -> tuple[list[str], list[str]]:
    """What a name, a pattern (`hopper-*`), a task or a family (`maze2d`) stands for, perhaps in one protocol only.

    Returns the names of the published data sets, and the tasks that have none.

    Raises:
        SpecError: nothing has this name, or not in this protocol, or it should not be used (with the reason).
    """
    if protocol is not None:
        lookup("protocol", protocol, PROTOCOLS, SpecError)
    published = {name: TASKS[entry.task] for name, entry in DATASETS.items()}
    with_data = {task.name for task in published.values()}
    unpublished = {name: task for name, task in TASKS.items() if name not in with_data}
    found = [
        [name for name, task in names.items() if fnmatchcase(name, given) or given in (name, task.name, task.family)]
        for names in (published, unpublished)
    ]
    if not any(found):
        if given in RETIRED:
            raise SpecError(f"data set '{given}': {RETIRED[given]}")
        families = {task.family for task in TASKS.values()}
        raise SpecError(unknown("data set", given, {*DATASETS, *TASKS, *families}))
    tasks = published | unpublished
    datasets, without = ([name for name in part if protocol in (None, tasks[name].protocol)] for part in found)
    if not datasets and not without:
        others = sorted({tasks[name].protocol for part in found for name in part})
        raise SpecError(f"'{given}' has no data set of protocol {protocol}, only of {', '.join(others)}")
    return datasets, without


def tasks_with_sizes(observation_dim: int, action_dim: int) -> list[Task]:
    """The tasks whose files have so many numbers a row. Minari's are left out: their data sets are no such files."""
    minari = {entry.task for entry in DATASETS.values() if entry.file_name is None}
    return [
        task
        for task in TASKS.values()
        if task.name not in minari
        and task.action_dim == action_dim
        and observation_dim in (task.observation_dim, task.observation_dim + task.appendix_dim)
    ]


def task_of(dataset: DatasetSpec) -> Task:
    """The task that `dataset` is evaluated in: a published data set's own, or the one named beside a file.

    Raises:
        SpecError: no such data set, task or behaviour (with the nearest name), or a task that is not the data set's.
    """
    name = dataset.catalog_name
    entry = DATASETS.get(name)
    if dataset.task is None:
        if entry is None and name not in RETIRED:
            if dataset.path is not None:
                raise SpecError(f"data set '{name}' is not in the catalog: name its 'task' beside its 'path'")
            cure = " (all: python -m dmray.data list); a data set of your own needs 'task' and 'path' (or 'generate')"
            raise SpecError(unknown("data set", name, DATASETS) + cure)
        return TASKS[entry_of(name).task]
    task = lookup("task", dataset.task, TASKS, SpecError)
    if entry is not None and entry.task != task.name:
        raise SpecError(f"data set '{name}' belongs to task '{entry.task}', not '{task.name}'")
    if entry is None and dataset.path is None and dataset.generate is None:
        raise SpecError(f"data set '{name}' is not in the catalog: name its file with 'path', or 'generate' it")
    if dataset.generate is not None:
        check_behaviour(task, dataset.generate.behaviour, f"data set '{name}'")
    return task


def protocol_of(dataset: DatasetSpec) -> str:
    """The protocol that scores on `dataset` belong to: its task's, or `made` where dmray records the data itself.

    So scores on data that were recorded here are in no table and no mean with those on published data.

    Raises:
        SpecError: as `task_of`.
    """
    protocol = task_of(dataset).protocol
    return protocol if dataset.generate is None else made_protocol(protocol)


def made_protocol(protocol: str) -> str:
    """The name of the protocol `made` where the tasks are those of `protocol`: `made` alone for D4RL's on MuJoCo."""
    return MADE if protocol == MUJOCO else f"{MADE}-{protocol}"


def behaviours_of(task: Task) -> tuple[str, ...]:
    """What `generate:` can record in `task`; random actions first."""
    family = FAMILIES.get((task.protocol, task.family))
    return (RANDOM, *(family.behaviours if family else ()))


def families_by_behaviours(tasks: Iterable[Task]) -> dict[tuple[str, ...], list[str]]:
    """The families of `tasks` by what can be recorded in them beside random actions; not those without anything."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for task in tasks:
        found.setdefault(behaviours_of(task)[1:], {})[task.family] = None
    return {behaviours: list(families) for behaviours, families in found.items() if behaviours}


def check_behaviour(task: Task, behaviour: str, place: str) -> None:
    """Whether `behaviour` can be recorded in `task`; `place` begins the message.

    Raises:
        SpecError: it cannot.
    """
    known = behaviours_of(task)
    if behaviour not in known:
        raise SpecError(f"{place}: task '{task.name}' cannot record it: {unknown('behaviour', behaviour, known)}")
