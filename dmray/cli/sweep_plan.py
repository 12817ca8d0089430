"""What `python -m dmray.sweep FILE --plan` prints: trials, what is done, data, placement, time, and what would help."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import TYPE_CHECKING

from dmray.cli.shared import err, out
from dmray.driver.plan_view import Price, counted, render_changes, render_needed_files, render_plan, render_time
from dmray.errors import ClusterError, MissingPackageError, SpecError, StorageError, TrackingError
from dmray.files import cache_folder, data_store_url, download_folders
from dmray.planning.calibration import (
    Calibration,
    calibration_names,
    calibration_of,
    hardware_name,
    load_calibration,
)
from dmray.planning.needed_files import needed_files
from dmray.planning.packing import packing_lines, require_processes
from dmray.planning.plan import Plan
from dmray.planning.time_estimate import Capacity, estimate_time, shorter_sweep
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.progress.changes import changes
from dmray.progress.extensions import find_extensions
from dmray.progress.search_progress import check_filter, grown
from dmray.progress.trial_status import TrialStatus, in_other_shards, moved_text, to_run, trial_statuses
from dmray.records import SweepFolder
from dmray.registry import short
from dmray.specs import ResourcesSpec, TrialSpec
from dmray.storage import SweepCopy, is_url, sweep_folder
from dmray.terminal import FittingTable
from dmray.trackers.table import check_trackers

if TYPE_CHECKING:
    from dmray.on_ray.placement import Machines

_OTHER_MACHINES = "  plan for other machines: --on NAME:N (names: --on list), or --cpus and --gpus"
_ON = re.compile(r"(.+?)(?::([0-9]+))?")
_MOST_MACHINES = 9999


@dataclass(frozen=True)
class PlanFor:
    """Where the sweep of a plan would run.

    `on`: a shipped calibration or a calibration's file, and, after a colon, how many such machines; None: this machine,
    or the cluster at `address`. `cpus`, `gpus`: of each machine, instead of what it has. `price`: of a machine's hour.
    """

    local: bool = False
    address: str | None = None
    on: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    price: float | None = None

    def refuse_without_plan(self) -> None:
        """Raises: SpecError: an option is given that only --plan uses."""
        for option, value in self.options:
            raise SpecError(f"{option} {value}: only --plan uses it; add --plan, or leave it out")

    def check(self) -> None:
        """Raises: SpecError: an option cannot take effect beside another one."""
        if self.price is not None and self.price <= 0:
            raise SpecError(f"--price {self.price:g}: give the price of a machine's hour, a number above 0")
        for option, value in self.options:
            if self.address is not None and option != "--price":
                raise SpecError(f"{option} {value}: --address {self.address} asks the cluster itself; give one of them")
            if self.local and option in ("--cpus", "--gpus"):
                raise SpecError(f"{option} {value}: --local runs one trial after the other; leave out one of them")
        if self.local and self.num_machines > 1:
            raise SpecError(f"--on {self.on}: --local runs on one machine; leave out one of them")

    @property
    def options(self) -> list[tuple[str, object]]:
        """The options that are given, of those that only --plan uses."""
        given = (("--on", self.on), ("--cpus", self.cpus), ("--gpus", self.gpus), ("--price", self.price))
        return [(option, value) for option, value in given if value is not None]

    @property
    def _on_parts(self) -> tuple[str, int]:
        match = _ON.fullmatch(self.on or "")
        if match is None:
            raise SpecError(f"--on {short(self.on or '')}: write it as NAME or NAME:N, for example {_example()}")
        number = match[2] or "1"
        if not 1 <= int(number[:9]) <= _MOST_MACHINES:
            most = f"give from 1 to {_MOST_MACHINES} machines, not {short(number)}"
            raise SpecError(f"--on {short(self.on or '')}: {most}")
        return match[1], int(number)

    @property
    def num_machines(self) -> int:
        return 1 if self.on is None else self._on_parts[1]

    def calibration(self) -> Calibration | None:
        """The measured speed of the machines; None: this machine was not measured.

        Raises:
            SpecError: there is no calibration `on`.
        """
        return load_calibration(hardware_name()) if self.on is None else calibration_of(self._on_parts[0])

    def machines(self, planned: Plan, calibration: Calibration | None) -> Callable[[ResourcesSpec], Machines]:
        """What a sweep with these resources finds there. (One machine is given more CPUs than it has, where it must.)

        Raises:
            ClusterError: no cluster answers at `address`.
        """
        from dmray import on_ray

        if self.address:
            found = on_ray.machines_at(self.address, planned)
            return lambda resources: found
        if self.on is None and self.cpus is None and self.gpus is None:
            return on_ray.machine_here
        if self.on is not None and calibration is not None:
            cpus, gpus = calibration.cpus, calibration.gpus
        else:
            here = on_ray.machine_here(ResourcesSpec())
            cpus, gpus = int(here.usable_cpus), int(here.gpus)
        cpus = cpus if self.cpus is None else self.cpus
        gpus = gpus if self.gpus is None else self.gpus
        return lambda resources: on_ray.machines_like(resources, self.num_machines, cpus, gpus)

    def named(self, machines: Machines) -> str:
        """The machines for a sentence, for example "this machine (2 CPUs, 0 GPUs)"."""
        size = f"({_amount(machines.usable_cpus, 'CPU')}, {_amount(machines.gpus, 'GPU')})"
        if self.address:
            return f"the cluster at {self.address} {size}"
        if self.on is not None:
            name, count = self._on_parts
            return f"{count} machine{'' if count == 1 else 's'} like {name} {size}"
        changed = self.cpus is not None or self.gpus is not None
        return f"{'a machine as fast as this one' if changed else 'this machine'} {size}"


def _amount(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def show_plan(planned: Plan, trial_filter: TrialFilter, where: PlanFor) -> None:
    """Print the plan, what has changed since the last start, which trials would run, and the time.

    Raises:
        ClusterError: the trials do not fit the cluster at `address`, or the machines that --on, --cpus or --gpus
            describe. (The plan is printed before.)
        SpecError: an option cannot take effect, or there is no such hardware.
    """
    if where.on == "list":
        out.print(_calibrations())
        return
    where.check()
    calibration = where.calibration()
    folder = sweep_folder(planned.sweep.storage, planned.sweep.name, "reader")
    if is_url(planned.sweep.storage):
        _download_records(planned)
    check_filter(planned.sweep, trial_filter)
    planned = grown(planned, folder)
    statuses = trial_statuses(planned, folder)
    difference = changes(planned, folder, statuses, find_extensions(planned, folder, statuses))
    part = replace(planned, trials=select_trials(planned, trial_filter))
    out.print(render_plan(part, {trial_id: statuses[trial_id] for trial_id in part.trial_ids}))
    if difference and difference.any:
        _print(f"since the last start: {difference}")
    if left := in_other_shards(planned, statuses, trial_filter):
        _print(moved_text(left, trial_filter))
    try:
        check_trackers(planned.sweep.tracking)
    except (MissingPackageError, TrackingError) as problem:
        _print(f"trackers: the sweep does not start here: {problem}")
    todo = to_run(planned, statuses, resume=True, trial_filter=trial_filter)
    if not todo:
        _print("to run: nothing, every trial is done")
        return
    _print(_data(todo, folder))
    begun = sum(statuses[trial.trial_id] is not TrialStatus.WAITING for trial in todo)
    for text in _time(planned, todo, where, calibration):
        _print(text)
    if begun:
        _print(f"  (trials that were begun before: {begun}, counted as if they started anew)")


def _print(text: str) -> None:
    """In a terminal, lines that are too long are continued under their beginning."""
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        fitting = wrap(line, out.width, subsequent_indent=indent, break_on_hyphens=False) if out.is_terminal else [line]
        for part in fitting:
            out.print(part, highlight=False, markup=False, soft_wrap=True)


def _calibrations() -> FittingTable:
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("--on", "hardware", "CPUs", "GPUs", "measured"):
        table.add_column(heading, no_wrap=heading != "hardware")
    for name in calibration_names():
        made = calibration_of(name)
        table.add_row(name, made.hardware, str(made.cpus), str(made.gpus), made.made[:10])
    return table


def _example() -> str:
    return f"{calibration_names()[0]}:4"


def _download_records(planned: Plan) -> None:
    """Download the sweep's records from its object store. If that is not possible, print it and continue."""
    try:
        SweepCopy.for_reading(planned.sweep.storage, planned.sweep.name).download()
    except StorageError as problem:
        message = f"the status of trials may be out of date: {problem}"
        err.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _data(todo: Sequence[TrialSpec], folder: SweepFolder) -> str:
    files = needed_files(list(dict.fromkeys(trial.dataset for trial in todo)), folder.datasets)
    into = [cache_folder() / "data"] if data_store_url() else download_folders()
    return render_needed_files(files, str(into[0]) if into else "no folder: set DMRAY_DATASETS")


def _time(planned: Plan, todo: Sequence[TrialSpec], where: PlanFor, calibration: Calibration | None) -> list[str]:
    """How many trials run at the same time and where, how long that takes, and what would shorten it.

    Raises:
        ClusterError: the trials do not fit the machines that were asked for. (If they do not fit this machine, the
            result says so.)
    """
    resources = planned.sweep.resources
    if where.local:
        require_processes(resources)
    packing = packing_lines(todo, resources.trials_per_pack)
    try:
        place, placement, num_machines = _placement(planned, len(todo), where, calibration)
    except ClusterError as problem:
        if where.address or where.on or where.cpus or where.gpus is not None:
            raise
        return [f"to run: {counted(len(todo), 'trial')}, but not on this machine: {problem}", _OTHER_MACHINES]
    if calibration is None:
        measure = "time: unknown; measure this hardware once: python -m dmray.doctor --calibrate"
        return [*placement, *packing, measure, _OTHER_MACHINES]
    try:
        capacity = place(resources)
        made = estimate_time(todo, resources, calibration, capacity)
        ways = shorter_sweep(todo, resources, calibration, place)
    except SpecError as lacking:
        return [*placement, *packing, f"time: unknown; {lacking}"]
    price = None if where.price is None else Price(where.price, num_machines)
    return [
        *placement,
        *packing,
        render_time(made, planned.sweep, capacity, calibration, price),
        render_changes(made, ways),
    ]


def _placement(
    planned: Plan, num_trials: int, where: PlanFor, calibration: Calibration | None
) -> tuple[Callable[[ResourcesSpec], Capacity], list[str], int]:
    """What runs at the same time with given resources; lines that say it for the sweep's own; the number of machines.

    Raises:
        ClusterError: the trials do not fit; so does the function.
    """
    resources = planned.sweep.resources
    if where.local:
        alone = f"to run: {counted(num_trials, 'trial')}, one after the other in one process"
        return lambda _: Capacity(0, 1), [alone], 1
    from dmray import on_ray

    find = where.machines(planned, calibration)

    def place(changed: ResourcesSpec) -> Capacity:
        machines = find(changed)
        placed = on_ray.place_trials(changed, machines, num_trials)
        return Capacity(placed.concurrent_trials, machines.usable_cpus, placed.trials_on_a_gpu, placed.gpus)

    concurrent, machines, actors = place(resources).trials, find(resources), resources.evaluation_actors
    lines = [
        f"to run: {counted(num_trials, 'trial')}, {concurrent} at a time, and {counted(actors, 'evaluation actor')},",
        f"  on {where.named(machines)}",
    ]
    if too_much := on_ray.overload(resources, concurrent, machines):
        lines.append(f"  {too_much}")
    return place, lines, sum(cpus > 0 for cpus, _ in machines.each)
