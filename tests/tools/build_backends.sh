#!/bin/sh
# Builds the installed llama-cpp-python again with OpenBLAS and with Vulkan, each in a folder of its
# own, and with CUDA where nvcc is. A folder on PYTHONPATH is used instead of the installed one:
#
#     tests/tools/build_backends.sh FOLDER [BACKEND...]
#     PYTHONPATH=FOLDER/vulkan llmkit verify CHECKPOINT GGUF --backend gpu
#
# Debian's packages: cmake ninja-build; libopenblas-dev pkg-config; mesa-vulkan-drivers libvulkan-dev
# glslc spirv-headers. Mesa's driver runs GPU shaders on the CPU. Only ggml is compiled: libllama is
# the same in every build.
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$tools")")
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- openblas vulkan $(command -v nvcc >/dev/null && echo cuda)
python=${PYTHON:-$root/.venv/bin/python}
installed=$("$python" -c 'import llama_cpp; print(llama_cpp.__path__[0], llama_cpp.__version__)')
version=${installed##* }
installed=${installed% *}

if [ ! -d "$folder/ggml" ]; then
    "$python" -m pip download --disable-pip-version-check --quiet --no-deps --dest "$folder" \
        --no-binary llama-cpp-python "llama-cpp-python==$version"
    tar -xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$folder" --strip-components=3 \
        --wildcards '*/vendor/llama.cpp/ggml'
    touch "$folder/ggml/ggml.pc.in" # not in the archive; CMake asks for it
fi
for backend in "$@"; do
    [ ! -d "$folder/$backend" ] || continue
    build=$folder/build-$backend
    export CXXFLAGS=
    case $backend in
        openblas) options="-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS" ;;
        vulkan) # for any x86-64 CPU with AVX2, to be carried to a machine with a GPU
            options="-DGGML_VULKAN=ON -DGGML_NATIVE=OFF"
            CXXFLAGS="-include $tools/vulkan_layer_settings.h" ;;
        cuda) options="-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native" ;;
        *) echo "unknown backend $backend; choose openblas, vulkan or cuda" >&2; exit 2 ;;
    esac
    # $options is several words.
    cmake -G Ninja -S "$folder/ggml" -B "$build" $options -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_INSTALL_RPATH='$ORIGIN' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
        -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF >"$build.log"
    cmake --build "$build" --target ggml >>"$build.log"
    mkdir -p "$build/package"
    cp -R "$installed" "$build/package/llama_cpp"
    find "$build/src" -name 'libggml*.so*' -exec cp {} "$build/package/llama_cpp/lib" \;
    mv "$build/package" "$folder/$backend"
    rm -rf "$build"
done
