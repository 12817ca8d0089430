"""What D4RL's families share: the protocol's name, the server of the files, and the sources of the numbers.

Reference scores and horizons are D4RL's (`d4rl/infos.py`). Target returns are Chen et al.'s (arXiv 2106.01345) for
hopper, halfcheetah and walker2d, and CORL's for maze2d and antmaze. Where nobody has established any, they are ours,
and `targets_source` says so.
"""

MUJOCO = "d4rl-mujoco"
FILES = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
LICENSE = "cc-by-4.0"  # of the data, by D4RL's README; its code is under Apache 2.0
D4RL, CHEN, CORL, OURS = "D4RL infos.py", "Chen et al. 2021", "CORL", "dmray (none established)"
