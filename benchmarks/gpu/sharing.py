"""Section "sharing": total training steps a second of 1 to 32 DM trials on one card, by how they share it.

Processes that take turns; processes under MPS; streams of one process, each trial with its own CUDA graph; one CUDA
graph with a branch for each trial; and trials packed into one network (`dmray.training.Pack`), with one or several
packs on streams of one process. With the GPU memory of each.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # before CUDA starts: as dmray's pack server has it

import torch
from section import SMALL, Section, pack_of, peak_memory_mib, section_from_options, steps_per_s, trainer_of, wait_for

from dmray.training import Trainer

COUNTS = (1, 2, 4, 8, 16, 32)
SEATS, PACKS = (16, 8, 4), (1, 2, 4)


def main() -> None:
    section = section_from_options(__doc__)
    counts, fields = ((1, 2), SMALL) if section.toy else (COUNTS, {})
    ways = {"streams": in_streams, "one graph": in_one_graph}
    for method in ("dm",) if section.toy else ("dm", "dt", "hdm"):
        in_packs(section, method, fields)
    for method in ("dm",) if section.toy else ("dm", "dt"):
        for count in counts:
            for way, measurement in ways.items():
                section.measure(
                    f"{method} x {count}, {way}",
                    lambda m=method, c=count, f=fields, go=measurement: go(section, m, c, f),
                    needs_s=4,
                )
        if method == "dm":
            in_processes(section, method, counts, fields, mps=False)
            in_processes(section, method, counts, fields, mps=True)


def _budget_s(section: Section) -> float:
    return 0.1 if section.toy else 1.5


def _result(section: Section, count: int, rate: float) -> dict[str, Any]:
    """`rate`: of rounds in which each trial takes one step."""
    memory = peak_memory_mib(section.device)
    return {"total_steps_per_s": rate * count, "ms_per_round": 1e3 / rate, "mib_per_trial": memory / count}


def in_streams(section: Section, method: str, count: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Trainers of one process, each on a stream of its own; one thread launches their graphs in turn."""
    trainers = [trainer_of(method, fields, section.device, seed=seed) for seed in range(count)]
    if section.device == "cuda":
        streams = [torch.cuda.Stream() for _ in trainers]
        torch.cuda.synchronize()

        def step() -> None:
            for trainer, stream in zip(trainers, streams, strict=True):
                with torch.cuda.stream(stream):
                    trainer.step()
    else:

        def step() -> None:
            for trainer in trainers:
                trainer.step()

    return _result(section, count, steps_per_s(step, section.device, _budget_s(section)))


def in_one_graph(section: Section, method: str, count: int, fields: dict[str, Any]) -> dict[str, Any]:
    """One graph whose branches are the steps of all trials: one launch for a step of each."""
    if section.device != "cuda":
        return {"left_out": "needs a GPU"}
    trainers = [trainer_of(method, fields, section.device, "off", seed=seed) for seed in range(count)]
    for trainer in trainers:
        trainer.captured = True  # AdamW is told that it is recorded
    main, branches = torch.cuda.Stream(), [torch.cuda.Stream() for _ in trainers]

    def round_of_steps() -> list[torch.Tensor]:
        results = []
        for trainer, branch in zip(trainers, branches, strict=True):
            branch.wait_stream(main)
            with torch.cuda.stream(branch):
                results.append(trainer._plain_step())
        for branch in branches:  # after all have begun, or each would wait for the one before
            main.wait_stream(branch)
        return results

    torch.cuda.synchronize()
    with torch.cuda.stream(main):
        for _ in range(3):
            round_of_steps()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    for trainer in trainers:
        graph.register_generator_state(trainer._generator)
    with torch.cuda.graph(graph, stream=main):
        round_of_steps()

    def step() -> None:
        for trainer in trainers:  # as a trainer does before each step
            trainer._optimizer.param_groups[0]["lr"].fill_(trainer.learning_rate)
        graph.replay()

    return _result(section, count, steps_per_s(step, section.device, _budget_s(section)))


def in_packs(section: Section, method: str, fields: dict[str, Any]) -> None:
    """`count` packs of so many seats each, every pack on its stream; one thread launches their graphs in turn."""
    cases = [(2, 1), (2, 2)] if section.toy else [(seats, packs) for packs in PACKS for seats in SEATS]
    variants: list[dict[str, Any]] = [{}] if section.device == "cpu" else [{}, {"dtype": "tf32"}, {"compiled": False}]
    for number, variant in enumerate(variants):
        for seats, packs in cases if number < 2 and method == "dm" else cases[:1]:
            named = "".join(f", {name} {value}" for name, value in variant.items())
            section.measure(
                f"{method} x {seats * packs}, {packs} packs of {seats}{named}",
                lambda s=seats, p=packs, v=variant: packed(section, method, s, p, fields, **v),
                needs_s=4 if section.toy else 20,
            )


def packed(
    section: Section, method: str, seats: int, packs: int, fields: dict[str, Any], **options: Any
) -> dict[str, Any]:
    begun = time.perf_counter()
    found = [pack_of(method, fields, section.device, seats, first=seats * number, **options) for number in range(packs)]
    steps = 1 if section.toy else 10

    def step() -> None:
        for pack in found:
            pack.advance(pack.occupied, steps)

    step()
    wait_for(section.device)
    set_up_s = time.perf_counter() - begun  # compiled, and captured
    rate = steps_per_s(step, section.device, _budget_s(section)) * steps
    return _result(section, seats * packs, rate) | {"set_up_s": set_up_s, "compiled": found[0].compiled}


def in_processes(section: Section, method: str, counts: tuple[int, ...], fields: dict[str, Any], *, mps: bool) -> None:
    """Start the largest number of processes once; for each count, that many train at the same time."""
    way = "processes under MPS" if mps else "processes"
    if mps and section.device != "cuda":
        section.add(f"{method}, {way}", left_out="needs a GPU")
        return
    if section.left_s < (5 if section.toy else 30):
        section.add(f"{method}, {way}", left_out=f"{section.left_s:.0f} s left")
        return
    with mps_server() if mps else contextlib.nullcontext() as problem:
        if problem:
            section.add(f"{method}, {way}", error=problem)
            return
        free = torch.cuda.mem_get_info()[0] if section.device == "cuda" else 0
        children = [Child(method, fields, section.device, seed) for seed in range(max(counts))]
        try:
            deadline = time.monotonic() + max(section.left_s - 5, 5)
            if not all(child.ready(deadline) for child in children):
                section.add(f"{method}, {way}", error="not all processes started in time")
                return
            used = (free - torch.cuda.mem_get_info()[0]) / 2**20 if section.device == "cuda" else 0.0
            for count in counts:
                section.measure(
                    f"{method} x {count}, {way}",
                    lambda count=count: (
                        together(children[:count], 0.3 if section.toy else 2.0)
                        | {"mib_per_trial": used / len(children)}
                    ),
                    needs_s=4,
                )
        finally:
            for child in children:
                child.end()


def together(children: list[Child], seconds: float) -> dict[str, Any]:
    start = time.time() + 0.2
    for child in children:
        child.pipe.send((start, seconds))
    rates = [child.answer(seconds + 20) for child in children]
    return {"total_steps_per_s": sum(rates), "slowest": min(rates), "fastest": max(rates)}


class Child:
    """A process with a trainer that takes steps when it is asked."""

    def __init__(self, method: str, fields: dict[str, Any], device: str, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_train, args=(theirs, method, fields, device, seed), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self, deadline: float) -> bool:
        return self.pipe.poll(max(deadline - time.monotonic(), 0)) and self.pipe.recv() == "ready"

    def answer(self, timeout_s: float) -> float:
        if not self.pipe.poll(timeout_s):
            raise TimeoutError("a training process does not answer")
        return float(self.pipe.recv())

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _train(pipe: Connection, method: str, fields: dict[str, Any], device: str, seed: int) -> None:
    torch.set_num_threads(1)
    trainer = trainer_of(method, fields, device, seed=seed)
    _steps(trainer, device, 6)
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            start, seconds = pipe.recv()
            time.sleep(max(start - time.time(), 0))
            begun, done = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds:
                _steps(trainer, device, 20)
                done += 20
            pipe.send(done / (time.perf_counter() - begun))


def _steps(trainer: Trainer, device: str, count: int) -> None:
    for _ in range(count):
        trainer.step()
    wait_for(device)


@contextmanager
def mps_server() -> Iterator[str | None]:
    """NVIDIA's Multi-Process Service for the processes that are started in the block. Yields why there is none."""
    program = shutil.which("nvidia-cuda-mps-control")
    if program is None:
        yield "nvidia-cuda-mps-control is not installed"
        return
    folder = Path(tempfile.mkdtemp(prefix="mps"))
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    os.environ.update(places)
    try:
        started = subprocess.run([program, "-d"], capture_output=True, text=True, timeout=20, check=False)
        yield None if started.returncode == 0 else f"MPS does not start: {started.stdout}{started.stderr}"
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run([program], input="quit\n", capture_output=True, text=True, timeout=20, check=False)
        for name in places:
            os.environ.pop(name, None)


if __name__ == "__main__":
    main()
