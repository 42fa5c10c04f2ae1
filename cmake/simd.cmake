# A source file may be compiled for an instruction set above the baseline; its name says which:
#   *_avx2.cpp  *_avx512.cpp  *_avx512bf16.cpp
# Most kernels need none of this: Highway compiles one source for every target by itself. These names are for the few
# instructions that Highway does not offer. Such a file is reached only after the processor was asked, and
# includes no header with non-trivial inline functions: the linker keeps one copy of an inline function, and it could be
# this file's. Where the processor is not an x86 these files are left out, so callers guard the call by HWY_ARCH_X86.
set(mamba3_avx2_flags -mavx2 -mfma -mf16c)
set(mamba3_avx512_flags ${mamba3_avx2_flags} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # gcc 12 reports the undefined operands inside its own intrinsics (its bug 105593).
  list(APPEND mamba3_avx512_flags -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
set(mamba3_avx512bf16_flags ${mamba3_avx512_flags} -mavx512bf16)

# Takes a variable that names a list of sources; sets their flags, or removes them from the list.
function(mamba3_simd_sources list_name)
  set(sources ${${list_name}})
  foreach(isa avx2 avx512 avx512bf16)
    set(matching ${sources})
    list(FILTER matching INCLUDE REGEX "_${isa}\\.cpp$")
    if(NOT matching)
      continue()
    endif()
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
      set_source_files_properties(${matching} PROPERTIES COMPILE_OPTIONS "${mamba3_${isa}_flags}")
    else()
      list(REMOVE_ITEM sources ${matching})
    endif()
  endforeach()
  set(${list_name} ${sources} PARENT_SCOPE)
endfunction()
