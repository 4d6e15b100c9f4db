#include "common.h"

namespace dijiang {
#if DIJIANG_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

namespace avx512 {

#define DIJIANG_TARGET "avx512"
#include "simd_avx512.h"
#include "kernels.inl"

}  // namespace avx512

#pragma GCC pop_options

const Kernels *const kAvx512 = &avx512::kKernels;

#else

const Kernels *const kAvx512 = nullptr;

#endif
}  // namespace dijiang
