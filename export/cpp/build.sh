#!/usr/bin/env bash
# Builds the client against the headers and libraries of an installed TensorFlow: build.sh [OUTPUT] (default ./detect).
# The environment variable PYTHON selects the Python that has this TensorFlow (default python3), CXX the compiler (g++).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
read -r -a flags < <("${PYTHON:-python3}" -c "import tensorflow as tf; print(*tf.sysconfig.get_compile_flags())")
library="$("${PYTHON:-python3}" -c "import tensorflow as tf; print(tf.sysconfig.get_lib())")"
"${CXX:-g++}" -O2 -w "${flags[@]}" "$here/detect.cc" -o "${1:-detect}" \
    -L"$library" -Wl,--no-as-needed -l:libtensorflow_cc.so.2 -l:libtensorflow_framework.so.2 -Wl,-rpath,"$library"
