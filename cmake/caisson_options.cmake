set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)

option(CAISSON_FOREIGN_LINKS "Build what links libvirt or gRPC (off for the sanitizer presets)" ON)
option(CAISSON_TESTS "Build the tests" ON)
set(CAISSON_SANITIZE "" CACHE STRING "Value for -fsanitize=, empty for none")

# -fPIC everywhere (instead of CMake's per-kind choice), so that one precompiled header serves every target.
add_compile_options(-fPIC -Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers)
set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g1")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")

if(CAISSON_SANITIZE)
  # CAF's headers bind references to null pointers, which is why `null` is left out.
  add_compile_options(-fsanitize=${CAISSON_SANITIZE} -fno-omit-frame-pointer)
  if(CAISSON_SANITIZE MATCHES undefined)
    add_compile_options(-fno-sanitize=null -fno-sanitize-recover=undefined)
  endif()
  add_link_options(-fsanitize=${CAISSON_SANITIZE})
endif()

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
    CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
  add_compile_options($<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)
endif()
