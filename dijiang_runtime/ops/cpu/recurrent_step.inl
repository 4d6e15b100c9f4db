// One token of decayed linear attention, in one pass over the state.
//
//     S' = decay S + k vᵀ        o = q S'
//
// S is read from one row of the states and S' written to another, so a step that is not committed
// has changed nothing. A head is computed by the same instructions whoever else is in the batch.
//
// Writing a state takes as long as reading it. So the last few tokens may be left pending beside it,
//
//     o = decay^(p+1) q S + sum_i decay^(p-i) (q k_i) v_i + (q k) v        0 <= i < p
//
// until a step folds them all into the state at once.

constexpr int64_t kStepVectors = 8;  // Vectors of a value whose read-out stays in registers.

constexpr int64_t kRowsAhead = 32;   // The processor itself fetches no more than one page ahead.

// What becomes of the state: it is kept as it is, the next one is stored, or the next one goes past
// the caches, which saves reading what it overwrites; its rows are then whole cache lines.
enum class Next { kKept, kStored, kStreamed };

// Tokens whose updates are pending: of each the features of the key and then the value. Only
// pointed to.
struct Pending {
    float *tokens;
    int64_t count, key_dim, value_dim;

    float *key(int64_t i) const { return tokens + i * (key_dim + value_dim); }
    float *value(int64_t i) const { return key(i) + key_dim; }
};

// What one head is given: query [group, key_dim], key [key_dim], value [value_dim]; powers of its
// decay, from 0 on.
struct HeadInput {
    const float *query, *key, *value, *powers;
    int64_t group, key_dim, value_dim;
    Pending pending;

    float decay() const { return powers[pending.count + 1]; }
    // What the update of a pending token has decayed to.
    float weight(int64_t i) const { return powers[pending.count - i]; }
};

// Some columns of one head, from the j-th on: at most Vectors vectors, the last of `last` numbers.
// The read-out of the next state is added to `out`; of a state that is kept, its own.
template <Next kNext, int Vectors>
static inline void step_columns(const float *state, float *next, const HeadInput &in, int64_t j,
                                int64_t last, float *out) {
    constexpr int full = Vectors - 1;
    Vec total[Vectors], v[Vectors];
    for (int i = 0; i < Vectors; ++i) {
        total[i] = load_some(out + kLanes * i, i < full ? kLanes : last);
        v[i] = load_some(in.value + j + kLanes * i, i < full ? kLanes : last);
    }
    const Vec d = broadcast(in.decay());
    for (int64_t m = 0; m < in.key_dim; ++m, state += in.value_dim, next += in.value_dim) {
        const Vec k = broadcast(in.key[m]), q = broadcast(in.query[m]);
        Vec now[Vectors];
        for (int i = 0; i < Vectors; ++i) {
            prefetch(state + kRowsAhead * in.value_dim + kLanes * i);
            now[i] = load_some(state + kLanes * i, i < full ? kLanes : last);
        }
        if constexpr (kNext != Next::kKept) {
            for (int i = 0; i < Vectors; ++i) now[i] = mul(d, now[i]);
            for (int64_t t = 0; t < in.pending.count; ++t) {
                const Vec earlier = broadcast(in.weight(t) * in.pending.key(t)[m]);
                const float *value = in.pending.value(t) + j;
                for (int i = 0; i < Vectors; ++i) {
                    now[i] = fma(earlier, load_some(value + kLanes * i, i < full ? kLanes : last), now[i]);
                }
            }
            for (int i = 0; i < Vectors; ++i) now[i] = fma(k, v[i], now[i]);
        }
        for (int i = 0; i < Vectors; ++i) {
            if constexpr (kNext == Next::kStreamed) stream(next + kLanes * i, now[i]);
            if constexpr (kNext == Next::kStored) {
                store_some(next + kLanes * i, i < full ? kLanes : last, now[i]);
            }
            total[i] = fma(q, now[i], total[i]);
        }
    }
    for (int i = 0; i < Vectors; ++i) {
        store_some(out + kLanes * i, i < full ? kLanes : last, total[i]);
    }
}

template <Next kNext, int Vectors = kStepVectors>
static inline void step_up_to(int64_t vectors, const float *state, float *next, const HeadInput &in,
                              int64_t j, int64_t last, float *out) {
    if (vectors == Vectors) {
        step_columns<kNext, Vectors>(state, next, in, j, last, out);
    } else if constexpr (Vectors > 1) {
        step_up_to<kNext, Vectors - 1>(vectors, state, next, in, j, last, out);
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

// The whole head for the first query of the group.
template <Next kNext>
static inline void step_first(const float *state, float *next, const HeadInput &in, float *out) {
    constexpr int64_t width = kStepVectors * kLanes;
    for (int64_t j = 0; j < in.value_dim; j += width) {
        const int64_t columns = in.value_dim - j < width ? in.value_dim - j : width;
        const int64_t vectors = (columns + kLanes - 1) / kLanes;
        step_up_to<kNext>(vectors, state + j, next + j, in, j, columns - (vectors - 1) * kLanes,
                          out + j);
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
        step_first<Next::kStreamed>(state, next, in, out);
        return;
    }
    step_first<Next::kStored>(state, next, in, out);
    for (int64_t g = 1; g < in.group; ++g) {
        read_out(next, in.query + g * in.key_dim, out + g * in.value_dim, in.key_dim, in.value_dim);
    }
}

static inline float dot(const float *a, const float *b, int64_t n) {
    Vec total = broadcast(0.0f);
    for_lanes(n, [&](int64_t i, int64_t count) {
        total = fma(load_some(a + i, count), load_some(b + i, count), total);
    });
    return sum_lanes(total);
}

// A column of values that are all 1: the mass of the features. state, next [key_dim], out [group].
static inline void step_mass(const float *state, float *next, const HeadInput &in, float *out) {
    const Vec decay = broadcast(in.decay());
    for_lanes(in.key_dim, [&](int64_t m, int64_t count) {
        Vec added = load_some(in.key + m, count);
        for (int64_t t = 0; t < in.pending.count; ++t) {
            added = fma(load_some(in.pending.key(t) + m, count), broadcast(in.weight(t)), added);
        }
        store_some(next + m, count, fma(load_some(state + m, count), decay, added));
    });
    for (int64_t g = 0; g < in.group; ++g) out[g] = dot(in.query + g * in.key_dim, next, in.key_dim);
}

// One head whose state is kept: out [group, value_dim], and mass [group] where there are masses. The
// token becomes pending.
static inline void step_pending(const float *state, const float *masses, const HeadInput &in,
                                float *out, float *mass) {
    std::memset(out, 0, sizeof(float) * in.group * in.value_dim);
    const Vec decay = broadcast(in.decay());
    HeadInput one = in;
    for (int64_t g = 0; g < in.group; ++g, out += in.value_dim) {
        one.query = in.query + g * in.key_dim;
        step_first<Next::kKept>(state, nullptr, one, out);
        for_lanes(in.value_dim, [&](int64_t j, int64_t count) {
            store_some(out + j, count, mul(load_some(out + j, count), decay));
        });
        if (masses) mass[g] = in.decay() * dot(one.query, masses, in.key_dim);
        const auto read = [&](const float *key, const float *value, float weight) {
            const float score = weight * dot(one.query, key, in.key_dim);
            for_lanes(in.value_dim, [&](int64_t j, int64_t count) {
                const Vec more = mul(broadcast(score), load_some(value + j, count));
                store_some(out + j, count, add(load_some(out + j, count), more));
            });
            if (masses) mass[g] += score;
        };
        for (int64_t t = 0; t < in.pending.count; ++t) {
            read(in.pending.key(t), in.pending.value(t), in.weight(t));
        }
        read(in.key, in.value, 1.0f);
    }
    std::memcpy(in.pending.key(in.pending.count), in.key, sizeof(float) * in.key_dim);
    std::memcpy(in.pending.value(in.pending.count), in.value, sizeof(float) * in.value_dim);
}

static void recurrent_step(Team &team, const RecurrentStep &s) {
    const int64_t head_size = s.key_dim * s.value_dim;
    team.for_each(s.rows * s.heads, [&](int64_t head, int) {
        const int64_t row = head / s.heads, h = head % s.heads;
        const float powers[] = {1.0f, s.decay[row * s.decay_stride + h]};
        const HeadInput in{s.q + head * s.group * s.key_dim,
                           s.k + head * s.key_dim,
                           s.v + head * s.value_dim,
                           powers,
                           s.group,
                           s.key_dim,
                           s.value_dim,
                           {}};
        step_head(s.states + (s.source[row] * s.heads + h) * head_size,
                  s.states + (s.target[row] * s.heads + h) * head_size, in,
                  s.out + head * s.group * s.value_dim);
    });
}
