#include "common.h"

namespace dijiang {
#if DIJIANG_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace avx2 {

#define DIJIANG_TARGET "avx2"
#include "simd_avx2.h"
#include "kernels.inl"

}  // namespace avx2

#pragma GCC pop_options

const Kernels *const kAvx2 = &avx2::kKernels;

#else

const Kernels *const kAvx2 = nullptr;

#endif
}  // namespace dijiang
