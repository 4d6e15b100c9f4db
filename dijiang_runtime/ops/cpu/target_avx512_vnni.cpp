#include "common.h"

namespace dijiang {
#if DIJIANG_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

namespace avx512_vnni {

#define DIJIANG_TARGET "avx512_vnni"
#define DIJIANG_VNNI 1
#include "simd_avx512.h"
#include "kernels.inl"

}  // namespace avx512_vnni

#pragma GCC pop_options

const Kernels *const kAvx512Vnni = &avx512_vnni::kKernels;

#else

const Kernels *const kAvx512Vnni = nullptr;

#endif
}  // namespace dijiang
