// One token of decayed linear attention, in one pass over the state.
//
//     S' = decay S + k vᵀ        o = q S'
//
// S is read from one row of the states and S' written to another, so a step that is not committed
// has changed nothing. A head is computed by the same instructions whoever else is in the batch.

constexpr int64_t kStepVectors = 8;  // Vectors of a value whose read-out stays in registers.

constexpr int64_t kRowsAhead = 32;   // The processor itself fetches no more than one page ahead.

// Some rows of the columns of one head: at most Vectors vectors, the last of `last` numbers. The
// read-out of these rows is added to `out`. Streamed, the next state goes past the caches, which
// saves reading what it overwrites; its rows are then whole cache lines. The bits are the same.
template <bool Streamed, int Vectors>
static inline void step_columns(const float *state, float *next, const float *query,
                                const float *key, const float *value, float decay, float *out,
                                int64_t rows, int64_t value_dim, int64_t last) {
    constexpr int full = Vectors - 1;
    Vec total[Vectors], v[Vectors];
    for (int i = 0; i < Vectors; ++i) {
        total[i] = load_some(out + kLanes * i, i < full ? kLanes : last);
        v[i] = load_some(value + kLanes * i, i < full ? kLanes : last);
    }
    const Vec d = broadcast(decay);
    for (int64_t m = 0; m < rows; ++m, state += value_dim, next += value_dim) {
        const Vec k = broadcast(key[m]), q = broadcast(query[m]);
        for (int i = 0; i < Vectors; ++i) {
            prefetch(state + kRowsAhead * value_dim + kLanes * i);
            const int64_t count = i < full ? kLanes : last;
            const Vec old = load_some(state + kLanes * i, count);
            const Vec now = fma(k, v[i], mul(d, old));
            if constexpr (Streamed) {
                stream(next + kLanes * i, now);
            } else {
                store_some(next + kLanes * i, count, now);
            }
            total[i] = fma(q, now, total[i]);
        }
    }
    for (int i = 0; i < Vectors; ++i) {
        store_some(out + kLanes * i, i < full ? kLanes : last, total[i]);
    }
}

template <bool Streamed, int Vectors = kStepVectors>
static inline void step_up_to(int64_t vectors, const float *state, float *next, const float *query,
                              const float *key, const float *value, float decay, float *out,
                              int64_t rows, int64_t value_dim, int64_t last) {
    if (vectors == Vectors) {
        step_columns<Streamed, Vectors>(state, next, query, key, value, decay, out, rows, value_dim,
                                        last);
    } else if constexpr (Vectors > 1) {
        step_up_to<Streamed, Vectors - 1>(vectors, state, next, query, key, value, decay, out, rows,
                                          value_dim, last);
    }
}

// Add the read-out of a further query of the group, from rows that are up to date.
static inline void read_out(const float *state, const float *query, float *out, int64_t rows,
                            int64_t value_dim) {
    for_lanes(value_dim, [&](int64_t j, int64_t count) {
        Vec total = load_some(out + j, count);
        for (int64_t m = 0; m < rows; ++m) {
            total = fma(broadcast(query[m]), load_some(state + m * value_dim + j, count), total);
        }
        store_some(out + j, count, total);
    });
}

// What one head is given: query [group, key_dim], key [key_dim], value [value_dim].
struct HeadInput {
    const float *query, *key, *value;
    float decay;
    int64_t group, key_dim, value_dim;
};

// The whole head for the first query of the group.
template <bool Streamed>
static inline void step_first(const float *state, float *next, const HeadInput &in, float *out) {
    constexpr int64_t width = kStepVectors * kLanes;
    for (int64_t j = 0; j < in.value_dim; j += width) {
        const int64_t columns = in.value_dim - j < width ? in.value_dim - j : width;
        const int64_t vectors = (columns + kLanes - 1) / kLanes;
        step_up_to<Streamed>(vectors, state + j, next + j, in.query, in.key, in.value + j, in.decay,
                             out + j, in.key_dim, in.value_dim, columns - (vectors - 1) * kLanes);
    }
}

// One head; out [group, value_dim]. `streamed` asks to pass by the caches where that is possible;
// fence before others read what was written.
static inline void step_head(const float *state, float *next, const HeadInput &in, float *out,
                             bool streamed = false) {
    std::memset(out, 0, sizeof(float) * in.group * in.value_dim);
    // Further queries of a group read the next state, and find it in the cache.
    const bool lines = reinterpret_cast<uintptr_t>(next) % (sizeof(float) * kLanes) == 0 &&
                       in.value_dim % kLanes == 0;
    if (streamed && in.group == 1 && lines) {
        step_first<true>(state, next, in, out);
        return;
    }
    step_first<false>(state, next, in, out);
    for (int64_t g = 1; g < in.group; ++g) {
        read_out(next, in.query + g * in.key_dim, out + g * in.value_dim, in.key_dim, in.value_dim);
    }
}

// A column of values that are all 1: the mass of the features. state, next [key_dim], out [group].
static inline void step_mass(const float *state, float *next, const HeadInput &in, float *out) {
    const Vec decay = broadcast(in.decay);
    for (int64_t g = 0; g < in.group; ++g) {
        Vec total = broadcast(0.0f);
        for_lanes(in.key_dim, [&](int64_t m, int64_t count) {
            const Vec now = fma(load_some(state + m, count), decay, load_some(in.key + m, count));
            if (g == 0) store_some(next + m, count, now);
            total = fma(load_some(in.query + g * in.key_dim + m, count), now, total);
        });
        out[g] = sum_lanes(total);
    }
}

static void recurrent_step(Team &team, const RecurrentStep &s) {
    const int64_t head_size = s.key_dim * s.value_dim;
    team.for_each(s.rows * s.heads, [&](int64_t head, int) {
        const int64_t row = head / s.heads, h = head % s.heads;
        const HeadInput in{s.q + head * s.group * s.key_dim,
                           s.k + head * s.key_dim,
                           s.v + head * s.value_dim,
                           s.decay[row * s.decay_stride + h],
                           s.group,
                           s.key_dim,
                           s.value_dim};
        step_head(s.states + (s.source[row] * s.heads + h) * head_size,
                  s.states + (s.target[row] * s.heads + h) * head_size, in,
                  s.out + head * s.group * s.value_dim);
    });
}
