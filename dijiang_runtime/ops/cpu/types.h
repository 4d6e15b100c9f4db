// What crosses from Python into the kernels. Plain data; Python owns every array that is pointed to.
#pragma once

#include <cstdint>

namespace dijiang {

// How the numbers of a matrix are stored, and so how rows are encoded before they meet it.
enum Format : int64_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

constexpr int64_t kLanes = 16;         // Floats of one vector, on every machine.
constexpr int64_t kPanelVectors = 4;   // Vectors of columns in one panel.
constexpr int64_t kPanelColumns = kLanes * kPanelVectors;
constexpr int64_t kChunk = 64;         // Tokens of one chunk of a prompt.

// A packed matrix, y = x Wᵀ + bias. Columns are the outputs, in panels of 64 that are stored one
// after the other: [panel][group][column][element], with as many elements of the input in a group as
// fill 32 bits: 1 float32, 2 bfloat16 or 4 int8. So every group of 16 columns is one 64-byte vector.
// Columns and inputs beyond the matrix are zero.
struct Matrix {
    const void *panels;
    const float *scale;         // int8: what one unit of a column is worth, [padded columns]
    const int32_t *column_sum;  // int8: sum of a column, [padded columns]
    const float *bias;          // [padded columns], or null
    int64_t groups;
    int64_t columns;
    int64_t format;

    int64_t num_panels() const { return (columns + kPanelColumns - 1) / kPanelColumns; }
};

// How a table that is not packed stores its numbers.
enum Number : int64_t { kFull = 0, kBrain = 1, kHalf = 2 };

enum Norm : int64_t { kLayerNorm = 0, kRmsNorm = 1 };
enum Activation : int64_t { kGelu = 0, kGeluTanh = 1, kRelu = 2, kSilu = 3 };

struct NormWeights {
    const float *weight;  // Null where the layer has no such norm.
    const float *bias;    // Null for RMS norm.
};

struct Layer {
    NormWeights attention_norm, mlp_norm, readout_norm;
    NormWeights query_norm, key_norm;  // RMS norms of each head.
    Matrix q, k, v, gate, o, up, mlp_gate, down;  // Absent ones have no panels.
    const float *projection;  // Feature map, [heads or 1, head_dim, padded columns]
    const float *powers;      // decay to the power 0 ... 64, [kv_heads, 65]
    const float *window_mix;  // Where there is a window, [heads], and what a query adds to it:
    const float *window_mix_query;  // [heads, head_dim]
};

struct Decoder {
    int64_t num_layers, hidden_size, inner_size, num_heads, num_kv_heads, head_dim;
    int64_t num_features, projection_columns, projection_stride, value_dim, rotary_dim;
    int64_t norm, activation, norm_first, parallel_residual, negated_half, num_groups, format;
    int64_t window, sinks;  // Tokens; 0: all attention is linear.
    double norm_eps, group_eps, query_scale, score_scale;  // Scores of the window have another scale.
    const double *rotary_frequencies;
    const void *embedding;     // [vocabulary, hidden_size]; null where the caller fills x.
    int64_t embedding_number;  // What it is made of: see Number.
    NormWeights final_norm;
    const Layer *layers;

    // Of the keys, or the values, of one head: sinks, the window, and the token that left it last.
    int64_t cache_size() const { return (sinks + window + 1) * head_dim; }
    int64_t query_size() const { return num_heads * head_dim; }
    int64_t value_size() const { return num_kv_heads * head_dim; }
};

// Consecutive tokens of one prompt.
struct Segment {
    int64_t start, length, source, target;
};

// What a step spends its time on: products of packed matrices, attention, and what is done to each
// row between them.
enum Phase : int64_t { kProducts = 0, kAttention = 1, kRows = 2, kNumPhases = 3 };

// The rows of one step: decodes first, then segments. Written in place: x [rows, hidden_size] and
// the target rows of states [num_layers, *, num_kv_heads, num_features, value_dim]. A decode whose
// target is its source keeps its state; its token goes to `pending`, after those that are there:
// [num_layers, *, num_kv_heads, *, num_features + head_dim], the features of the key and the value.
// Of a model with a window, `caches` has the same rows as the states and is written like them, except
// that a decode writes its token in any case: [num_layers, *, num_kv_heads, 2, sinks + window + 1,
// head_dim].
struct Batch {
    float *x;
    const int64_t *token_ids;
    const int64_t *positions;
    int64_t num_rows, num_decodes, num_segments;
    const int64_t *source, *target;  // Of each decode.
    const Segment *segments;
    float *states;
    int64_t layer_stride;  // Floats of one layer's states.
    float *caches;
    int64_t cache_layer_stride;
    uint8_t *finite;       // [rows], set by the caller; cleared where a state, a read-out or x is not.
    float *pending;
    int64_t pending_layer_stride, pending_head_stride;
    const int64_t *pending_rows, *pending_counts;  // Of each decode.
    int64_t *nanoseconds;  // Of each phase, added to where it is not null.
};

// One token of decayed linear attention; see `recurrent_step.inl`.
struct RecurrentStep {
    const float *q, *k, *v, *decay;
    int64_t decay_stride;
    float *states;
    const int64_t *source, *target;
    float *out;
    int64_t rows, heads, group, key_dim, value_dim;
};

// What is known of the panels of some rows of logits: the largest number of each, and the sum of
// e^((x - largest) / temperature) over it. Of tokens that may not come nothing counts, whatever their
// logits are; a panel where none may come has the largest -infinity and no mass.
struct Panels {
    float *largest;            // [rows, panels], or null: nothing is known.
    float *mass;               // [rows, panels]
    const float *temperature;  // [rows], 0 where the masses are not known; null: none are.
    // [rows], one bit for each token that may come, the first in the lowest; null where all may.
    const uint32_t *const *masks;  // Null: all may, in all rows.

    const uint32_t *mask(int64_t row) const { return masks ? masks[row] : nullptr; }
};

// How one row of logits becomes a token, at a temperature above 0. Neutral values cut nothing:
// min_p 0, top_p 1, top_k 0 or the whole vocabulary.
struct Draw {
    double temperature, min_p, top_p, uniform;  // `uniform` is in [0, 1).
    int64_t top_k, row;
};

// The logprobs of one token of each row, and of the likeliest there, whether they may come or not.
struct LogprobQuery {
    const float *logits;    // [*, vocab_size]
    const Panels *panels;
    const int64_t *rows;    // [num_rows], which of them
    const int64_t *tokens;  // [num_rows]
    int64_t num_rows, vocab_size, num_top;
    float *chosen;     // [num_rows]
    int64_t *top_ids;  // [num_rows, num_top], the likeliest first; among equals the first id
    float *top;        // [num_rows, num_top]
};

// The penalties of one sequence, for the tokens that it has seen: each once, with how often it was
// put out.
struct Penalties {
    const int64_t *tokens;
    const float *counts;
    int64_t num_tokens;
    float repetition, frequency, presence;
    float least;  // No logit becomes smaller.
};

// What a sequence's parameters change about a row of logits, in this order.
struct Adjustment {
    int64_t row;
    const int64_t *biased;
    const float *bias;  // Is added.
    int64_t num_biased;
    const int64_t *suppressed;  // Become the least that penalties leave.
    int64_t num_suppressed;
    Penalties penalties;
};

class Team;
class Workspace;

// What is compiled once for every kind of processor.
struct Kernels {
    const char *name;
    void (*multiply)(Team &, Workspace &, const Matrix &, const float *x, int64_t rows,
                     int64_t in_features, float *out);
    void (*logits)(Team &, Workspace &, const Matrix &, const float *x, const int64_t *chosen,
                   int64_t rows, int64_t in_features, float *out, const Panels &, uint8_t *finite,
                   int64_t *likeliest);
    void (*forward)(Team &, Workspace &, const Decoder &, const Batch &);
    void (*recurrent_step)(Team &, const RecurrentStep &);
    void (*draw)(Team &, Workspace &, const float *logits, const Panels &, int64_t vocab_size,
                 const Draw *draws, int64_t num_draws, int64_t *tokens);
    void (*logprobs)(Team &, Workspace &, const LogprobQuery &);
    void (*scan_rows)(Team &, const float *x, int64_t num_rows, int64_t n, uint8_t *finite,
                      int64_t *likeliest);
    void (*adjust)(Team &, Workspace &, float *logits, const Panels &, int64_t vocab_size,
                   const Adjustment *, int64_t count, int64_t *likeliest);
};

// Null where the compiler cannot make them.
extern const Kernels *const kPortable;
extern const Kernels *const kAvx2;
extern const Kernels *const kAvx512;
extern const Kernels *const kAvx512Vnni;
extern const Kernels *const kAvx512Bf16;
extern const Kernels *const kAmx;
extern const Kernels *const kPortableTiles;

}  // namespace dijiang
