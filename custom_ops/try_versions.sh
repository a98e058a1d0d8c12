#!/usr/bin/env bash
# Runs the tests of the ops with the same library under several TensorFlow versions, each in its own environment.
#
#   custom_ops/try_versions.sh [FOLDER [VERSION ...]]
#
# FOLDER stores the environments for later runs (default: kerasdet-versions in the temporary folder). PYTHON names an
# interpreter that all versions support (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-${TMPDIR:-/tmp}/kerasdet-versions}")
shift || true
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.16.2 2.18.1 2.21.0)

make -C custom_ops
library=$(sha256sum kerasdet/ops/_kerasdet_ops.so)
for version in "${versions[@]}"; do
  environment=$folder/tf-$version
  if [ ! -e "$environment/ready" ]; then
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install -q "tensorflow-cpu==$version" "keras>=3.8,<4" pycocotools pillow gin-config pytest
    touch "$environment/ready"
  fi
  "$environment/bin/python" -c 'import tensorflow as tf, keras; print("TensorFlow", tf.__version__, "Keras", keras.__version__)' 2>/dev/null
  PYTHONPATH=$PWD "$environment/bin/python" -m pytest tests/ops --durations=0 --durations-min=60
  sha256sum --quiet -c <<<"$library"
done
