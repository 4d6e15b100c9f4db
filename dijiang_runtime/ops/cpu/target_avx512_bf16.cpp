#include "common.h"

namespace dijiang {
#if DIJIANG_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")

namespace avx512_bf16 {

#define DIJIANG_TARGET "avx512_bf16"
#define DIJIANG_VNNI 1
#define DIJIANG_BF16 1
#include "simd_avx512.h"
#include "kernels.inl"

}  // namespace avx512_bf16

#pragma GCC pop_options

const Kernels *const kAvx512Bf16 = &avx512_bf16::kKernels;

#else

const Kernels *const kAvx512Bf16 = nullptr;

#endif
}  // namespace dijiang
