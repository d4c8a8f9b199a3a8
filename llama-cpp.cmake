# Read by CMake when pip builds llama-cpp-python (see the Makefile): leave out llama.cpp's library
# for its own command-line programs. llmkit uses libllama and ggml alone.
# llama-cpp-python sets the cache entry of this name; an ordinary variable goes before it.
set(LLAMA_BUILD_COMMON OFF)
# Warnings of llama.cpp's compilation are for its developers: thousands of lines with AVX-512.
if(NOT MSVC)
    add_compile_options(-w)
endif()
