#!/bin/sh
# What a machine with one GPU says of this checkout, as one table: python3 with torch, the package's dependencies,
# torchattacks and foolbox. Takes under 8 minutes on an H100.
#
#   AFTERSHOCK_DATA=/data sh tests/gpu/check.sh [--seconds N] [--parts agreement,speed,suite] [--out FILE]
#
# CIFAR-10 and the ResNet-20 weights are read below AFTERSHOCK_DATA; --images FILE.npz and --weights FILE name them
# singly. The exit status is 1 where CUDA and CPU disagree.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" "$here/check.py" "$@"
