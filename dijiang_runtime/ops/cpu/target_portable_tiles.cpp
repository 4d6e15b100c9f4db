#include "common.h"

namespace dijiang {
namespace portable_tiles {

#define DIJIANG_TARGET "portable_tiles"
#define DIJIANG_TILES 1
#include "simd_portable.h"
#include "tiles_portable.h"
#include "kernels.inl"

}  // namespace portable_tiles

const Kernels *const kPortableTiles = &portable_tiles::kKernels;

}  // namespace dijiang
