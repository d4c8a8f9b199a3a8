#!/bin/sh
# Builds llama-cpp-python with OpenBLAS and with Vulkan, each in a folder of its own, and with CUDA
# where nvcc is. A folder on PYTHONPATH is used instead of the installed llama.cpp:
#
#     tests/tools/build_backends.sh FOLDER [BACKEND...]
#     PYTHONPATH=FOLDER/vulkan llmkit verify CHECKPOINT GGUF --backend gpu
#
# Debian's packages: libopenblas-dev pkg-config; mesa-vulkan-drivers libvulkan-dev glslc spirv-headers.
# Mesa's driver runs GPU shaders on the CPU. On two busy cores OpenBLAS took 11 minutes, Vulkan 18.
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$tools")")
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- openblas vulkan $(command -v nvcc >/dev/null && echo cuda)
version=$(sed -n 's/^llama_cpp_python==//p' "$root/constraints.txt")
python=${PYTHON:-$root/.venv/bin/python}

for backend in "$@"; do
    [ ! -f "$folder/$backend/llama_cpp/__init__.py" ] || continue
    case $backend in
        openblas) options="-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS" ;;
        vulkan) options="-DGGML_VULKAN=ON -DCMAKE_CXX_FLAGS='-include $tools/vulkan_layer_settings.h'" ;;
        cuda) options="-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native" ;;
        *) echo "unknown backend $backend; choose openblas, vulkan or cuda" >&2; exit 2 ;;
    esac
    # Not from pip's cache, and not into it: it keeps one wheel, whatever it was built with.
    CMAKE_ARGS="$options -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$root/llama-cpp.cmake" \
    SKBUILD_NINJA_MAKE_FALLBACK=false \
        "$python" -m pip install --disable-pip-version-check --quiet --no-cache-dir --no-deps \
        --config-settings "build-dir=$folder/build-$backend" \
        --target "$folder/$backend" "llama-cpp-python==$version"
    rm -rf "$folder/build-$backend"
done
