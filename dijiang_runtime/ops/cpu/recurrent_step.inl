// One token of decayed linear attention, in one pass over the state.
//
//     S' = decay S + k vᵀ        o = q S'
//
// S is read from one row of the states and S' written to another, so a step that is not committed
// has changed nothing. A head is computed by the same instructions whoever else is in the batch.

constexpr int64_t kStepVectors = 8;  // Vectors of a value whose read-out stays in registers.

// Some columns of one head: at most Vectors vectors, the last of `last` numbers.
template <int Vectors>
static inline void step_columns(const float *state, float *next, const float *query,
                                const float *key, const float *value, float decay, float *out,
                                int64_t key_dim, int64_t value_dim, int64_t last) {
    constexpr int full = Vectors - 1;
    Vec total[Vectors], v[Vectors];
    for (int i = 0; i < Vectors; ++i) {
        total[i] = broadcast(0.0f);
        v[i] = load_some(value + kLanes * i, i < full ? kLanes : last);
    }
    const Vec d = broadcast(decay);
    for (int64_t m = 0; m < key_dim; ++m, state += value_dim, next += value_dim) {
        const Vec k = broadcast(key[m]), q = broadcast(query[m]);
        for (int i = 0; i < Vectors; ++i) {
            const int64_t count = i < full ? kLanes : last;
            const Vec old = load_some(state + kLanes * i, count);
            const Vec now = fma(k, v[i], mul(d, old));
            store_some(next + kLanes * i, count, now);
            total[i] = fma(q, now, total[i]);
        }
    }
    for (int i = 0; i < Vectors; ++i) {
        store_some(out + kLanes * i, i < full ? kLanes : last, total[i]);
    }
}

template <int Vectors = kStepVectors>
static inline void step_up_to(int64_t vectors, const float *state, float *next, const float *query,
                              const float *key, const float *value, float decay, float *out,
                              int64_t key_dim, int64_t value_dim, int64_t last) {
    if (vectors == Vectors) {
        step_columns<Vectors>(state, next, query, key, value, decay, out, key_dim, value_dim, last);
    } else if constexpr (Vectors > 1) {
        step_up_to<Vectors - 1>(vectors, state, next, query, key, value, decay, out, key_dim,
                                value_dim, last);
    }
}

// The read-out of a further query of the group, from a state that is up to date.
static inline void read_out(const float *state, const float *query, float *out, int64_t key_dim,
                            int64_t value_dim) {
    for_lanes(value_dim, [&](int64_t j, int64_t count) {
        Vec total = broadcast(0.0f);
        for (int64_t m = 0; m < key_dim; ++m) {
            total = fma(broadcast(query[m]), load_some(state + m * value_dim + j, count), total);
        }
        store_some(out + j, count, total);
    });
}

// One head and the queries of its group: query [group, key_dim], out [group, value_dim].
static inline void step_head(const float *state, float *next, const float *query, const float *key,
                             const float *value, float decay, float *out, int64_t group,
                             int64_t key_dim, int64_t value_dim) {
    constexpr int64_t width = kStepVectors * kLanes;
    for (int64_t j = 0; j < value_dim; j += width) {
        const int64_t columns = value_dim - j < width ? value_dim - j : width;
        const int64_t vectors = (columns + kLanes - 1) / kLanes;
        step_up_to(vectors, state + j, next + j, query, key, value + j, decay, out + j, key_dim,
                   value_dim, columns - (vectors - 1) * kLanes);
    }
    for (int64_t g = 1; g < group; ++g) {
        read_out(next, query + g * key_dim, out + g * value_dim, key_dim, value_dim);
    }
}

static void recurrent_step(Team &team, const RecurrentStep &s) {
    const int64_t head_size = s.key_dim * s.value_dim;
    team.for_each(s.rows * s.heads, [&](int64_t head, int) {
        const int64_t row = head / s.heads, h = head % s.heads;
        step_head(s.states + (s.source[row] * s.heads + h) * head_size,
                  s.states + (s.target[row] * s.heads + h) * head_size,
                  s.q + head * s.group * s.key_dim, s.k + head * s.key_dim,
                  s.v + head * s.value_dim, s.decay[row * s.decay_stride + h],
                  s.out + head * s.group * s.value_dim, s.group, s.key_dim, s.value_dim);
    });
}
