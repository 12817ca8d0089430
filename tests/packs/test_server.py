from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmray.datasets import Episodes
from dmray.errors import DatasetError, PackServerError
from dmray.on_ray.trainable import is_transient
from dmray.packs import packed_trainer, server
from dmray.packs.channel import Message, connect, listen
from dmray.packs.packed_trainer import PackedTrainer, ServerPlace
from dmray.packs.server import SOCKET, PackServer, PackSettings, Slice, next_slice
from dmray.records import AttemptFailed, AttemptStarted, TrainProgress
from dmray.sources import open_dataset
from dmray.tasks import task_of
from dmray.training import Pack, Trainer
from dmray.training.build import build_policy, build_sampler
from dmray.trial import build
from dmray.trial.checkpoints import load_checkpoint
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.run import run_trial
from tests.trial.jobs import Killed, StopAt, job, records_of
from tests.waiting import wait_until

PACKED = {"trials_per_pack": 2, "gpus_per_trial": 0.5, "device": "cpu"}
SETTINGS = PackSettings(seats=2, device="cpu", capture="auto", deterministic=False, torch_threads=1)


@pytest.mark.parametrize(
    ("occupied", "left", "waited_s", "step_s", "expected"),
    [
        ({0, 1}, {}, 9.0, 0.01, None),
        ({0, 1}, {0: 100}, 0.0, 0.01, None),
        ({0, 1}, {0: 100}, 0.06, 0.05, Slice(frozenset({0}), 20)),
        ({0, 1}, {0: 100, 1: 7}, 0.0, 0.01, Slice(frozenset({0, 1}), 7)),
        ({0}, {0: 3}, 0.0, 5.0, Slice(frozenset({0}), 1)),
        ({0}, {0: 3}, 0.0, 0.0, Slice(frozenset({0}), 1)),
    ],
)
def test_a_pack_steps_when_all_have_asked_or_the_others_let_it_wait(
    occupied: set[int], left: dict[int, int], waited_s: float, step_s: float, expected: Slice | None
) -> None:
    assert next_slice(frozenset(occupied), left, waited_s, step_s) == expected


class SlowPack:
    """A pack of two seats on a device that has not finished until the test says so."""

    occupied = frozenset({0, 1})
    is_set_up = True
    finished = False

    def advance(self, seats: frozenset[int], steps: int) -> torch.Tensor:
        return torch.zeros(steps, 2, 2, 1)

    def event(self) -> SlowPack:
        return self

    def query(self) -> bool:
        return self.finished

    def leave(self, seat: int) -> None: ...


def test_steps_of_a_trial_that_left_are_not_those_of_the_next_one_in_its_seat() -> None:
    pack = SlowPack()
    host = server._Host(pack)  # type: ignore[arg-type]
    stays, left, joined = Future[torch.Tensor](), Future[torch.Tensor](), Future[torch.Tensor]()
    host.ask(0, 1, stays)
    host.ask(1, 1, left)
    host.move()
    host.leave(1)
    host.ask(1, 5, joined)
    host.move()
    assert not stays.done()
    pack.finished = True
    host.move()
    assert stays.result(0).shape == (1, 2, 1)
    assert not joined.done()
    assert host.asked[1].left == 5


class World:
    """A data set, and a server in a thread of this process."""

    def __init__(self, work: TrialJob, episodes: Episodes) -> None:
        self.work, self.episodes, self.task = work, episodes, task_of(work.trial.dataset)
        self.place = ServerPlace(str(work.folder.path), SETTINGS)
        self.ended: Future[None] = Future()
        self.server = PackServer(SETTINGS.model_copy(update={"idle_s": 0.2}), self.place.folder, self._listen())
        threading.Thread(target=self._run, daemon=True).start()

    def _listen(self) -> server.socket.socket:
        return listen(self.place.folder / SOCKET)

    def _run(self) -> None:
        try:
            self.server.run()
            self.ended.set_result(None)
        except BaseException as cause:  # noqa: BLE001 - the test asks
            self.ended.set_exception(cause)

    def packed(self, seed: int = 0, fingerprint: str | None = None) -> PackedTrainer:
        trial = self.work.trial.model_copy(update={"seed": seed})
        policy = build_policy(trial, self.task, self.episodes)
        recordings = self.work.sweep_folder.datasets
        return PackedTrainer(trial, policy, fingerprint or self.episodes.fingerprint, recordings, self.place)

    def unpacked(self, seed: int = 0) -> Trainer:
        trial = self.work.trial.model_copy(update={"seed": seed})
        policy = build_policy(trial, self.task, self.episodes)
        return Trainer(policy, build_sampler(trial, policy, self.episodes, "cpu"), trial.training, seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialJob, Episodes]:
    work = job(tmp_path_factory.mktemp("packs"), resources=PACKED)
    task = task_of(work.trial.dataset)
    return work, open_dataset(work.trial.dataset, task, work.sweep_folder.datasets).episodes


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sessions in a folder of the test's own, with a short name."""
    with tempfile.TemporaryDirectory(prefix="dmray-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def world(data: tuple[TrialJob, Episodes]) -> World:
    return World(*data)


def all_steps(trainer: PackedTrainer | Trainer, count: int) -> torch.Tensor:
    """(count, 2, stages)"""
    taken: list[torch.Tensor] = []
    while (left := count - sum(map(len, taken))) > 0:
        metrics = trainer.advance(left)
        taken.append(torch.stack([metrics.stage_losses, metrics.grad_norms], dim=1))
    return torch.cat(taken)


def test_two_clients_take_the_steps_of_their_own_trainers(world: World) -> None:
    clients = [world.packed(seed) for seed in (3, 4)]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda client: all_steps(client, 6), clients))
    for seed, client, result in zip((3, 4), clients, results, strict=True):
        trainer = world.unpacked(seed)
        torch.testing.assert_close(result, all_steps(trainer, 6), rtol=1e-4, atol=1e-5)
        assert (client.steps_done, client.learning_rate) == (6, trainer.learning_rate)
        torch.testing.assert_close(client.policy.state_dict(), trainer.policy.state_dict(), rtol=1e-3, atol=1e-5)
        state = client.state_dict()
        assert state.keys() == trainer.state_dict().keys()
        client.load_state_dict(state)
        client.close()


def test_one_that_asks_for_nothing_or_leaves_holds_nobody_up_and_its_seat_is_given_again(world: World) -> None:
    first, silent = world.packed(1), world.packed(2)
    expected = all_steps(world.unpacked(1), 4)
    got = [all_steps(first, 2)]
    silent._channel.close()  # as if it was killed
    host = next(iter(world.server._hosts.values()))[0]
    wait_until(lambda: len(host.pack.occupied) == 1, 20)
    third = world.packed(3)
    assert len(world.server._hosts) == 1
    got.append(all_steps(first, 2))
    torch.testing.assert_close(torch.cat(got), expected, rtol=1e-4, atol=1e-5)
    fourth = world.packed(5)
    hosts = next(iter(world.server._hosts.values()))
    assert [len(each.pack.occupied) for each in hosts] == [2, 1], "a full pack is followed by another one"
    for client in (first, third, fourth):
        client.close()
    world.ended.result(30)  # nobody is left
    assert not (world.place.folder / SOCKET).exists()


def test_data_that_changed_meanwhile_is_refused(world: World) -> None:
    with pytest.raises(DatasetError, match="its content has changed"):
        world.packed(fingerprint="another")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_a_step_ends_the_server_and_all_attempts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.packed(1)
    all_steps(first, 1)

    def broken(pack: Pack, seats: object, steps: int) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(Pack, "advance", broken)
    with pytest.raises(PackServerError, match=r"failed \(RuntimeError: CUDA error.*tried again.*log\.txt") as caught:
        first.advance(3)
    assert is_transient(caught.value)
    with pytest.raises(RuntimeError, match="CUDA error"):
        world.ended.result(30)
    first.close()


def test_a_server_that_does_not_answer_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    client = world.packed(1)
    monkeypatch.setattr(packed_trainer, "_ANSWER_S", 0.3)
    monkeypatch.setattr(packed_trainer, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(ServerPlace, "kill", lambda place: killed.append("kill"))
    release = threading.Event()
    world.server._tasks.put((lambda: release.wait(20), Future()))
    try:
        with pytest.raises(PackServerError, match="did not answer in time"):
            client.advance(1)
    finally:
        release.set()
    assert killed == ["kill"]
    client.close()


def test_a_server_whose_main_thread_hangs_is_killed_long_before_an_answer_is_due(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    client = world.packed(1)
    assert (client.is_set_up, world.server.silent_s()) == (False, 0.0), "compiling takes long"
    all_steps(client, 1)
    monkeypatch.setattr(packed_trainer, "_SILENT_S", 0.2)
    monkeypatch.setattr(packed_trainer, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(server, "_SLOW", 0.0)
    monkeypatch.setattr(ServerPlace, "kill", lambda place: killed.append("kill"))
    release = threading.Event()
    world.server._tasks.put((lambda: release.wait(20), Future()))
    try:
        with pytest.raises(PackServerError, match="did not answer in time and was killed"):
            client.advance(1)
        assert world.server.silent_s() > 0.2
    finally:
        release.set()
    assert set(killed) == {"kill"}
    client.close()


def test_a_slice_that_runs_for_much_longer_than_usual_counts_as_a_hang_unless_a_pack_is_set_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pack = SimpleNamespace(occupied={0}, is_set_up=True)
    host = SimpleNamespace(pack=pack, running=SimpleNamespace(begun=1000.0), step_s=2.0)
    hung = PackServer(SETTINGS, Path(), None)  # type: ignore[arg-type]
    hung._hosts["key"] = [host]  # type: ignore[list-item]
    now[0] = hung._round_at = 1300.0  # the loop goes round and round, and the GPU does not finish
    assert hung.silent_s() == 300 - 20 * 2.0
    host.running = None
    assert hung.silent_s() == 0.0
    pack.is_set_up, hung._round_at = False, 1000.0
    assert hung.silent_s() == 0.0
    pack.is_set_up = True
    assert hung.silent_s() == 300 - 20 * 2.0


def test_a_message_that_never_ends_is_a_timeout(tmp_path: Path) -> None:
    path = Path(tempfile.gettempdir()) / "socket"
    with listen(path) as listening:
        channel = connect(path, 1.0)
        theirs, _ = listening.accept()
        theirs.sendall(b"\x10\x00\x00\x00\x00\x00\x00\x00half")
        with pytest.raises(TimeoutError):
            channel.receive(0.2)
        theirs.close()
        channel.close()


def test_messages_hold_plain_values_and_tensors_only() -> None:
    path = Path(tempfile.gettempdir()) / "socket"
    with listen(path) as listening:
        channel = connect(path, 1.0)
        theirs = server.Channel(listening.accept()[0])
        sent: Message = {"advance": 3, "rng": None, "weights": {0: torch.arange(3.0)}}
        channel.send(sent, 1.0)
        got = theirs.receive(1.0)
        assert got["advance"] == 3
        assert torch.equal(got["weights"][0], sent["weights"][0])
        channel.send({"harm": os.system}, 1.0)
        with pytest.raises(Exception, match="Weights only load failed"):
            theirs.receive(1.0)
        channel.close()
        theirs.close()


@pytest.mark.chaos
def test_a_packed_trial_survives_the_death_of_its_server_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """With a real server: started by the trial, killed with SIGKILL, started again by the next attempt."""
    whole = job(tmp_path / "whole")
    broken = job(tmp_path / "broken", resources=PACKED)
    run_trial(whole, InlineEvaluation())
    place = build._pack_server(broken)
    try:
        with pytest.raises(PackServerError):
            run_trial(broken, InlineEvaluation(), _then(lambda: _kill(place), at=20))
        with pytest.raises(Killed):
            run_trial(broken, InlineEvaluation(), StopAt(30))
        pid = place._pid()
        run_trial(broken, InlineEvaluation())
        assert place._pid() == pid, "the server that runs is used"
    finally:
        place.kill()
    failed = records_of(broken, AttemptFailed)
    assert [record.step for record in failed] == [20]
    assert failed[0].error.startswith("PackServerError: the process that trains packed trials ended")
    started = records_of(broken, AttemptStarted)
    assert [record.from_step for record in started] == [0, 20, 30]
    assert {record.provenance["packed"] for record in started} == {2}
    assert {record.provenance["scan_backend"] for record in started} == {"reference"}
    ours, theirs = ({record.step: record.loss for record in records_of(one, TrainProgress)} for one in (broken, whole))
    assert ours == pytest.approx(theirs, rel=1e-4)
    weights, expected = (load_checkpoint(one.folder.last_checkpoint)["trainer"]["policy"] for one in (broken, whole))
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)


def _kill(place: ServerPlace) -> None:
    pid = place._pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _then(action: Callable[[], object], at: int) -> Callable[[int, float | None], None]:
    def report(step: int, score: float | None) -> None:
        if step == at:
            action()
            time.sleep(0.2)

    return report
