#include "common.h"

namespace dijiang {
namespace portable {

#define DIJIANG_TARGET "portable"
#include "simd_portable.h"
#include "kernels.inl"

}  // namespace portable

const Kernels *const kPortable = &portable::kKernels;

}  // namespace dijiang
