#include "common.h"

namespace dijiang {
// Compilers before GCC 11 do not know these instructions.
#if DIJIANG_X86 && __GNUC__ >= 11

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#pragma GCC target("amx-tile,amx-int8,amx-bf16")

namespace amx {

#define DIJIANG_TARGET "amx"
#define DIJIANG_VNNI 1
#define DIJIANG_BF16 1
#define DIJIANG_TILES 1
#include "simd_avx512.h"
#include "tiles_amx.h"
#include "kernels.inl"

}  // namespace amx

#pragma GCC pop_options

const Kernels *const kAmx = &amx::kKernels;

#else

const Kernels *const kAmx = nullptr;

#endif
}  // namespace dijiang
