// All kernels for one kind of processor. A source file that is named after it selects the target,
// defines DIJIANG_TARGET and its vectors, and includes this within its own namespace.

#include "math.inl"
#include "logit_row.inl"
#include "rows.inl"
#include "panel.inl"
#ifdef DIJIANG_TILES
#include "panel_tiles.inl"
#endif
#include "matmul.inl"
#include "norms.inl"
#include "recurrent_step.inl"
#include "features.inl"
#include "heads.inl"
#include "attention.inl"
#include "window.inl"
#include "layer_attention.inl"
#include "decoder.inl"
#include "adjust.inl"
#include "sampling.inl"

static constexpr Kernels kKernels{DIJIANG_TARGET, multiply, logits, forward, recurrent_step, draw,
                                  logprobs, scan_rows, adjust};
