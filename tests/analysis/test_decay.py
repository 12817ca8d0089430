"""Planted decays are found exactly; initial weights are those of the training; cut-off states see no more than said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import dmray
from dmray.analysis.decay import memory_lengths, with_context
from dmray.analysis.decay_files import Panel, panels_of
from dmray.analysis.stored import MeasuredPolicy, find_policies, open_data, settings_of
from dmray.cli.analyze import app
from dmray.errors import CheckpointError, DatasetError, SpecError
from dmray.inference import Policy
from dmray.policies import SequencePolicy, initial_policy, make_decoder
from dmray.records import SweepFolder
from dmray.specs import DatasetSpec
from dmray.trial.build import build_trainer
from dmray.trial.checkpoints import rewrite_checkpoint
from dmray.trial.job import TrialJob
from tests.policies.windows import random_fields, tiny_policy, windows_of


def planted(method: str, steps: Mapping[int, float], rates: Mapping[int, float], **fields: str) -> SequencePolicy:
    """A policy in which all channels of layer l have step size `steps[l]` and all their states the rate `rates[l]`."""
    policy = tiny_policy(method, **fields)
    with torch.no_grad():
        for stage in policy.stages:
            for number, layer in enumerate(stage.backbone.layers):  # type: ignore[union-attr]
                mixer = layer.mixer
                mixer.x_proj.weight.zero_()
                mixer.dt_proj.bias.fill_(math.log(math.expm1(steps[number])))
                if mixer.A_log is not None:
                    mixer.A_log.fill_(math.log(rates[number]))
    return policy


@pytest.mark.parametrize(("method", "tokens"), [("dm", [2]), ("dm+r", [3]), ("hdm", [2, 3])])
def test_a_planted_decay_is_found_exactly(method: str, tokens: list[int]) -> None:
    policy = planted(method, {0: 0.1, 1: 0.02}, {0: 2.0, 1: 10.0})
    windows = windows_of(random_fields(3, 8), policy.tokens, first=1, length=4, num_valid=3)
    found = memory_lengths(policy, windows)
    expected = [length / per_timestep for per_timestep in tokens for length in (1 / 0.2, 1 / 0.2)]
    assert [(row.stage, row.layer) for row in found] == [(stage, n) for stage in policy.stage_names for n in (1, 2)]
    for row, length in zip(found, expected, strict=True):
        assert list(row.quantiles.values()) == pytest.approx([length] * 5, rel=1e-5)
        assert row.beyond_context == 0.0


def test_quantiles_and_the_share_beyond_the_context_are_those_of_all_states() -> None:
    policy = planted("dm", {0: 0.1, 1: 0.1}, {0: 1.0, 1: 1.0})
    with torch.no_grad():
        rates = torch.tensor([0.5, 0.8, 1.0, 10.0])
        for layer in policy.stages[0].backbone.layers:  # type: ignore[union-attr]
            layer.mixer.A_log.copy_(rates.log())  # 10, 6.25, 5 and 0.5 timesteps of two tokens
    windows = windows_of(random_fields(3, 8), policy.tokens, first=0, length=6, num_valid=2)
    for row in memory_lengths(policy, windows):
        assert list(row.quantiles.values()) == pytest.approx([0.5, 0.5, 5.0, 6.25, 10.0], rel=1e-5)
        assert row.beyond_context == 0.5  # of lengths above 6


def test_padding_and_step_sizes_of_other_tokens_do_not_count() -> None:
    policy = tiny_policy("dm")
    fields = random_fields(3, 8)
    short, long = (windows_of(fields, policy.tokens, first=0, length=n, num_valid=3) for n in (3, 7))
    for ours, expected in zip(memory_lengths(policy, long), memory_lengths(policy, short), strict=True):
        assert ours.quantiles == pytest.approx(expected.quantiles, rel=1e-6)


def test_the_step_size_of_each_token_counts() -> None:
    policy = tiny_policy("dm")
    windows = windows_of(random_fields(3, 8), policy.tokens, first=0, length=4, num_valid=4)
    first = memory_lengths(policy, windows)[0]
    assert first.quantiles["p5"] < first.quantiles["p50"] < first.quantiles["p95"]
    mixer = policy.stages[0].backbone.layers[0].mixer  # type: ignore[union-attr]
    states = policy._encoded(windows)
    with torch.no_grad():
        embedded = policy.stages[0].embed(states, windows.timesteps).flatten(1, 2)  # type: ignore[operator]
        steps = mixer.step_sizes(policy.stages[0].backbone.layers[0].norm(embedded))  # type: ignore[union-attr]
        lengths = (1 / (steps[..., None] * mixer.A_log.exp()) / 2).flatten().double().numpy()
    expected = np.quantile(lengths, [0.05, 0.5, 0.95], method="inverted_cdf")
    assert [first.quantiles[name] for name in ("p5", "p50", "p95")] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize(("evolution", "length"), [("no-decay", math.inf), ("memoryless", 0.0)])
def test_without_decay_states_last_forever_and_without_memory_not_at_all(evolution: str, length: float) -> None:
    policy = tiny_policy("dm", evolution=evolution)
    windows = windows_of(random_fields(3, 8), policy.tokens, first=0, length=4, num_valid=4)
    for row in memory_lengths(policy, windows):
        assert list(row.quantiles.values()) == [length] * 5
        assert row.beyond_context == (1.0 if length else 0.0)


@pytest.fixture(scope="module")
def dm(trial_folders: dict[str, Path]) -> Policy:
    return find_policies([str(trial_folders["dm"])]).policies[0].load()


def test_the_initial_weights_are_those_that_the_trial_began_with(ran: dmray.SweepRun, dm: Policy) -> None:
    folder, opened = ran.folders[0], open_data(dm)
    job = TrialJob.of(dm.trial, ran.plan.sweep, SweepFolder(folder.path.parent, folder.path.name))
    before, random = torch.get_rng_state(), initial_policy(dm.snapshot.recipe, dm.trial.seed).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "torch's global RNG stays as it is"
    trainer, _ = build_trainer(job, opened.task, opened.episodes)
    began = trainer.policy.state_dict()
    assert random.keys() == began.keys()
    assert all(torch.equal(random[name], began[name]) for name in began if not name.startswith("state_"))
    assert not all(torch.equal(random[name], dm.network.state_dict()[name]) for name in began)


def test_an_action_with_states_cut_off_depends_on_no_older_timestep(dm: Policy) -> None:
    cut = with_context(dm, 2)
    histories = np.random.default_rng(0).normal(size=(2, 6, dm.observation_dim)).astype(np.float32)
    histories[1, 3:] = histories[0, 3:]  # the timesteps before are others
    actions = np.zeros((2, dm.action_dim), np.float32)
    decided = []
    for policy in (cut, dm):
        decoder = make_decoder(policy.network, "window", 2)
        for timestep in range(5):
            decoder.decide(histories[:, timestep], np.zeros(2), actions)
        decided.append(decoder.decide(histories[:, 5], np.zeros(2)))
    np.testing.assert_array_equal(decided[0][0], decided[0][1])
    assert np.abs(decided[1][0] - decided[1][1]).max() > 0, "the whole context of 4 sees more"


def test_the_policys_own_context_gives_its_recorded_score(ran: dmray.SweepRun, trial_folders: dict[str, Path]) -> None:
    made = dmray.analyze_decay(trial_folders["dm"], windows=2, cut=[1], episodes=4)
    recorded = ran.trials.set_index("method").loc["dm", "last_normalized_score"]
    scores = made.scores.set_index("timesteps")["normalized_score"]
    assert list(scores.index) == [1, 4]
    assert scores[4] == recorded


def test_the_command_writes_tables_and_figures_and_says_what_it_left_out(ran: dmray.SweepRun, tmp_path: Path) -> None:
    into = tmp_path / "decay"
    arguments = [str(ran.folders[0].path), "--windows", "2", "--cut", "1,2", "--episodes", "2", "--into", str(into)]
    done = CliRunner().invoke(app, ["decay", *arguments], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    names = {"lengths.csv", "lengths_by_setting.csv", "scores.csv", "scores_by_setting.csv"}
    figures = {f"{what}-open-expert.{kind}" for what in ("lengths", "scores") for kind in ("png", "svg")}
    assert {path.name for path in into.iterdir()} == names | figures | {"notes.txt"}
    lengths = pd.read_csv(into / "lengths.csv", keep_default_na=False)
    assert list(zip(lengths["stage"], lengths["layer"], lengths["weights"], strict=True)) == [
        ("action", 1, "start"),
        ("action", 1, "trained"),
    ]
    assert (lengths["method"] == "dm").all()
    assert "DT has no Mamba, so nothing decays in it" in done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)
    start, trained = lengths["p50"]
    assert re.search(rf"open-expert +DM +{start:.3g} +{trained:.3g} +\d+%", done.stdout)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--episodes", "3"], "--episodes, --workers: only with --cut"),
        (["--cut", "1,x"], "--cut '1,x': give whole numbers between commas"),
        (["--cut", "0"], "cut 0: must be at least 1"),
        (["--cut", "150"], "cut 150: an episode of maze2d-open has 150 timesteps; give a smaller one"),
    ],
)
def test_an_option_that_cannot_take_effect_is_one_sentence(
    options: list[str], sentence: str, trial_folders: dict[str, Path], tmp_path: Path
) -> None:
    refused = CliRunner().invoke(app, ["decay", str(trial_folders["dm"]), "--into", str(tmp_path), *options])
    assert refused.exit_code == 1
    assert sentence in refused.output.replace("\n", " ")
    assert refused.output.count("error:") == 1


def test_a_transformer_is_refused(trial_folders: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match=r"DT has no Mamba, so nothing decays in it; give policies of .* dm, dm\+r or"):
        dmray.analyze_decay(trial_folders["dt"])


def test_seeds_of_a_setting_share_a_mean_and_settings_and_steps_are_told_apart(
    dm: Policy, trial_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Checkpoints of other seeds, settings and steps, with the weights of one trial."""
    files = []
    for number, (seed, rate, step) in enumerate([(0, 1e-3, 40), (1, 1e-3, 40), (0, 1e-2, 40), (0, 1e-2, 20)]):
        training = dm.trial.training.model_copy(update={"learning_rate": rate})
        trial = dm.trial.model_copy(update={"seed": seed, "training": training})
        files.append(tmp_path / f"{number}.pt")
        rewrite_checkpoint(trial_folders["dm"] / "checkpoints" / "final.pt", files[-1], trial, step=step)
    made = dmray.analyze_decay(files[:3], windows=2)
    table = made.lengths_by_setting
    shared = "learning_rate 1e-3"
    assert dict(zip(table["setting"], table["seeds"], strict=True)) == {shared: 2, "learning_rate 0.01": 1}
    started = made.lengths.query("weights == 'start' and setting == @shared")["p50"]
    assert started.nunique() == 2, "each seed has its own initial weights"
    mean = table.query("weights == 'start' and setting == @shared")["p50"].item()
    assert mean == pytest.approx(math.sqrt(started.prod()))
    steps = dmray.analyze_decay(files[2:], windows=2).lengths["setting"]
    assert list(dict.fromkeys(steps)) == ["step 40", "step 20"]


def test_other_data_of_the_same_name_are_another_setting(dm: Policy) -> None:
    other = dm.trial.model_copy(update={"seed": 1})
    settings = settings_of([MeasuredPolicy(dm.trial, 40, "0123456789"), MeasuredPolicy(other, 40, "abcdefghij")])
    assert settings == {
        (dm.trial.trial_id, 40): ("open-expert (data 01234567)", ""),
        (other.trial_id, 40): ("open-expert (data abcdefgh)", ""),
    }


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ("dm/a dm+r/a dm/b dm+r/b", {"dm/a": (0, 0), "dm+r/a": (0, 1), "dm/b": (1, 0), "dm+r/b": (1, 1)}),
        ("dm/a dm/b dm+r/b", {"dm/a": (0, 0), "dm/b": (1, 0), "dm+r/b": (1, 1)}),  # one was left out
        ("dm/a dm+r/b", {"dm/a": (0, 0), "dm+r/b": (0, 1)}),  # no setting in common
        ("dm/a dm/b dm/c dm/d", {"dm/a": (0, 0), "dm/b": (0, 1), "dm/c": (0, 2), "dm/d": (1, 0)}),
    ],
)
def test_panels_are_in_the_order_of_the_settings_with_a_column_for_each_method(
    settings: str, places: dict[str, tuple[int, int]]
) -> None:
    given = [(each.partition("/")[0], each.partition("/")[2]) for each in settings.split()]
    assert panels_of(given) == [Panel(*at, *name.split("/")) for name, at in sorted(places.items(), key=lambda i: i[1])]


def test_what_cannot_be_read_is_named_at_the_end_and_the_others_are_analysed(
    dm: Policy, trial_folders: dict[str, Path], tmp_path: Path
) -> None:
    gone = DatasetSpec(name="gone", task="maze2d-open", path=str(tmp_path / "gone.hdf5"))
    trial, into = dm.trial.model_copy(update={"dataset": gone}), tmp_path / "into"
    rewrite_checkpoint(trial_folders["dm"] / "checkpoints/final.pt", tmp_path / "gone.pt", trial)
    files = [str(tmp_path / "gone.pt"), str(trial_folders["dm"]), str(tmp_path / "torn.pt")]
    Path(files[2]).write_bytes(Path(files[0]).read_bytes()[:100])
    done = CliRunner().invoke(app, ["decay", *files, "--windows", "2", "--into", str(into)])
    sentence = f"data set gone (1 policy) is not analysed: {tmp_path}/gone.hdf5"
    torn, gone_data = done.output.splitlines()[-2:]
    assert (done.exit_code, gone_data.startswith(f"error: {sentence}")) == (1, True), done.output
    assert torn.startswith(f"error: {files[2]}: not a dmray checkpoint as it was written")
    assert f"\n{sentence}" in (into / "notes.txt").read_text()
    assert set(pd.read_csv(into / "lengths.csv")["dataset"]) == {"open-expert"}
    with pytest.raises(DatasetError, match=r"data set gone \(1 policy\) is not analysed"):
        dmray.analyze_decay(files[0])
    with pytest.raises(CheckpointError, match=r"torn\.pt: not a dmray checkpoint"):
        dmray.analyze_decay(files[2])
    dmray.analyze_decay(files[1], windows=2, into=into)
    assert not (into / "notes.txt").exists()
