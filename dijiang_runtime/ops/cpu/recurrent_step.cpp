// One token of decayed linear attention for every row of a batch, in one pass over the states.
//
//     S' = decay S + k vᵀ        o = q S'
//
// S is read from row source[b] of the states and S' written to row target[b], so a step that is not
// committed has changed nothing. Rows are computed one after the other by the same instructions, so
// a row's bits do not depend on the batch. The caller may run disjoint ranges of rows at once.

#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
// One build serves every x86-64: the loader picks the widest vectors that the processor has.
#define DISPATCHED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DISPATCHED
#endif

namespace {

// One feature row of one head: update it and add its share to the read-outs of the group.
inline __attribute__((always_inline)) void update_feature(
    const float *__restrict state, float *__restrict next, const float *__restrict value,
    float *__restrict out, const float *query, float decay, float key, int64_t group,
    int64_t key_dim, int64_t value_dim) {
    for (int64_t j = 0; j < value_dim; ++j) next[j] = state[j] * decay + key * value[j];
    for (int64_t g = 0; g < group; ++g) {
        const float weight = query[g * key_dim];
        float *__restrict o = out + g * value_dim;
        for (int64_t j = 0; j < value_dim; ++j) o[j] += weight * next[j];
    }
}

}  // namespace

// Shapes, contiguous: q [rows, heads * group, key_dim], k [rows, heads, key_dim],
// v [rows, heads, value_dim], states [*, heads, key_dim, value_dim],
// out [rows, heads * group, value_dim]. decay is [heads], or [rows, heads] with decay_stride = heads.
extern "C" DISPATCHED void dijiang_recurrent_step(
    const float *q, const float *k, const float *v, const float *decay, int64_t decay_stride,
    float *states, const int64_t *source, const int64_t *target, float *out, int64_t rows,
    int64_t heads, int64_t group, int64_t key_dim, int64_t value_dim) {
    const int64_t head_size = key_dim * value_dim;
    for (int64_t b = 0; b < rows; ++b) {
        for (int64_t h = 0; h < heads; ++h) {
            const int64_t head = b * heads + h;
            const float *state = states + (source[b] * heads + h) * head_size;
            float *next = states + (target[b] * heads + h) * head_size;
            float *o = out + head * group * value_dim;
            for (int64_t i = 0; i < group * value_dim; ++i) o[i] = 0.0f;
            for (int64_t m = 0; m < key_dim; ++m) {
                update_feature(state + m * value_dim, next + m * value_dim, v + head * value_dim, o,
                               q + head * group * key_dim + m, decay[b * decay_stride + h],
                               k[head * key_dim + m], group, key_dim, value_dim);
            }
        }
    }
}
