"""A trained policy in a loop of your own: python examples/own_loop.py runs/quickstart/trials/TRIAL

`engine` stands for your simulator or robot: it takes actions (E, A), and gives observations (E, S), rewards (E,) and
which episodes have ended.
"""

from __future__ import annotations

import sys
from contextlib import closing

import numpy as np

import dmray
from dmray.rollout import make_engine

EPISODES = 4


def main(source: str) -> None:
    """Act in some episodes; then the same by `evaluate_policy`, which has an engine for each of dmray's tasks."""
    policy = dmray.load_policy(source)
    print(f"{policy}: {policy.observation_dim} numbers in, {policy.action_dim} out, in {policy.task.name}")

    returns = np.zeros(EPISODES)
    with closing(make_engine(policy.task, EPISODES)) as engine:
        observations = engine.reset(seeds=range(EPISODES))
        rollout = policy.start(EPISODES)
        actions = rollout.act(observations)
        while rollout.live.size:
            step = engine.step(actions, rollout.live)
            returns[rollout.live] += step.rewards
            going = rollout.drop(step.terminated | step.truncated)
            if going.size:
                actions = rollout.act(step.observations[going], step.rewards[going])
    print("returns of our own loop:", returns.tolist())

    evaluation = dmray.evaluate_policy(policy, episodes=EPISODES)
    print(f"normalized score of {EPISODES} other episodes: {evaluation.normalized:.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
