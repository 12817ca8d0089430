#!/usr/bin/env bash
# Unpack what prepare.sh has collected into a folder for PYTHONPATH, on the machine with the GPU. It needs no network.
#
#   source benchmarks/gpu/install.sh SITE PART...     PART: a folder of wheels or a .tar.xz
#
# It may be called again with further parts. Packages that the machine has already win, except those given here.
site=${1:?usage: source install.sh SITE PART...}
shift
mkdir -p "$site"
for part in "$@"; do
    case $part in
    *.tar.xz) tar -C "$site" -xJf "$part" ;;
    *) python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$site" "$part"/*.whl ;;
    esac || return 1 2>/dev/null || exit 1
done
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
