// One token of decayed linear attention, in one pass over the state.
//
//     S' = decay S + k vᵀ        o = q S'
//
// S is read from one row of the states and S' written to another, so a step that is not committed
// has changed nothing. A head is computed by the same instructions whoever else is in the batch.

constexpr int64_t kStepVectors = 8;  // Vectors of a value whose read-out stays in registers.

constexpr int64_t kRowsAhead = 32;   // The processor itself fetches no more than one page ahead.

// Some rows of the columns of one head: at most Vectors vectors, the last of `last` numbers. The
// read-out of these rows is added to `out`.
template <int Vectors>
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
                              int64_t rows, int64_t value_dim, int64_t last) {
    if (vectors == Vectors) {
        step_columns<Vectors>(state, next, query, key, value, decay, out, rows, value_dim, last);
    } else if constexpr (Vectors > 1) {
        step_up_to<Vectors - 1>(vectors, state, next, query, key, value, decay, out, rows,
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

// Rows first ... first + rows - 1 of the state, for all queries of the group.
static inline void step_rows(const float *state, float *next, const HeadInput &in, int64_t first,
                             int64_t rows, float *out) {
    constexpr int64_t width = kStepVectors * kLanes;
    for (int64_t j = 0; j < in.value_dim; j += width) {
        const int64_t columns = in.value_dim - j < width ? in.value_dim - j : width;
        const int64_t vectors = (columns + kLanes - 1) / kLanes;
        step_up_to(vectors, state + j, next + j, in.query + first, in.key + first, in.value + j,
                   in.decay, out + j, rows, in.value_dim, columns - (vectors - 1) * kLanes);
    }
    for (int64_t g = 1; g < in.group; ++g) {
        read_out(next, in.query + g * in.key_dim + first, out + g * in.value_dim, rows,
                 in.value_dim);
    }
}

// One head; out [group, value_dim]. With a `block` of 16 rows of a state, the next state goes past
// the caches, which saves reading what it overwrites. The bits are the same.
static inline void step_head(const float *state, float *next, const HeadInput &in, float *out,
                             float *block = nullptr) {
    std::memset(out, 0, sizeof(float) * in.group * in.value_dim);
    // So many rows are whole cache lines whatever the size of a value.
    constexpr int64_t rows = kLanes;
    if (block == nullptr || in.key_dim % rows != 0 ||
        reinterpret_cast<uintptr_t>(next) % (sizeof(float) * kLanes) != 0) {
        step_rows(state, next, in, 0, in.key_dim, out);
        return;
    }
    const int64_t size = rows * in.value_dim;
    for (int64_t first = 0; first < in.key_dim; first += rows, state += size, next += size) {
        step_rows(state, block, in, first, rows, out);
        for (int64_t i = 0; i < size; i += kLanes) stream(next + i, load(block + i));
    }
    fence();
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
