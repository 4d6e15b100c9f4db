// Linear attention of one key/value head: a decode, or a part of a prompt chunk by chunk.
//
//     C tokens of a chunk    G query heads of the group    m features    e padded value dim
//
//     O = ((Φq Φkᵀ) ∘ L) V + diag(γ^i) Φq S        S' = γ^C S + Φkᵀ diag(γ^(C-j)) V
//
// L_ij = γ^(i-j) for i >= j. All exponents are at most C and never negative.

// What a layer has projected, rows of all heads; queries and keys are rotated in place.
struct Projected {
    float *q, *k;    // [rows, query_size], [rows, value_size]
    const float *v;  // [rows, value_size]
    const float *angles;  // [rows, rotary_dim]
    float *y;             // The read-outs, [rows, query_size]
    uint8_t *finite;      // [rows]

    // Several heads may say so at once.
    void spoil(int64_t row) const { __atomic_store_n(finite + row, 0, __ATOMIC_RELAXED); }
};

// The state of one head: for each feature the sums of the values, [m, head_dim], which are whole cache
// lines for most sizes of a head; then, where the read-out is normalised, the masses of the features,
// [m], which are the sums of a value that is always 1.
template <class Number>
static inline Number *masses_of(const Decoder &d, Number *state) {
    return state + d.num_features * d.head_dim;
}

// Memory of one thread.
struct HeadScratch {
    float *projected;          // [C, padded projection columns]
    float *query, *key;        // Features, [C, m]
    float *key_transposed;     // [m, C]
    float *value, *out;        // [C, e]
    float *scores;             // [C, C]
    float *state;              // [m, e]

    HeadScratch(Arena &w, const Decoder &d) {
        const int64_t e = whole_vectors(d.value_dim), m = d.num_features;
        // A decode has the read-outs of one group in place of the tokens of a chunk.
        const int64_t rows = d.num_heads > kChunk ? d.num_heads : kChunk;
        projected = w.take<float>(kChunk * whole_vectors(d.projection_columns));
        query = w.take<float>(kChunk * m);
        key = w.take<float>(kChunk * m);
        key_transposed = w.take<float>(m * kChunk);
        value = w.take<float>(kChunk * e);
        out = w.take<float>(rows * e);
        scores = w.take<float>(kChunk * kChunk);
        state = w.take<float>(m * e);
    }
};

// The read-out of one query head as the layer passes it on: o [head_dim], divided by the mass.
static inline void finish_readout(const Decoder &d, const float *o, const float *mass, float *y) {
    if (mass == nullptr) {
        for_lanes(d.head_dim, [&](int64_t i, int64_t n) { store_some(y + i, n, load_some(o + i, n)); });
        return;
    }
    // The bound only guards against underflow; a mass that is NaN stays NaN.
    const Vec whole = broadcast(*mass < 1e-30f ? 1e-30f : *mass);
    for_lanes(d.head_dim, [&](int64_t i, int64_t n) {
        store_some(y + i, n, div(load_some(o + i, n), whole));
    });
}

// The value of a token, and where the read-out is normalised a column that is always 1.
static inline void extend_value(const Decoder &d, const float *v, float *out) {
    for_lanes(d.head_dim, [&](int64_t i, int64_t n) { store_some(out + i, n, load_some(v + i, n)); });
    for (int64_t i = d.head_dim; i < whole_vectors(d.value_dim); ++i) {
        out[i] = i < d.value_dim ? 1.0f : 0.0f;
    }
}

static inline const float *projection_of(const Decoder &d, const Layer &layer, int64_t head) {
    return layer.projection + head * d.projection_stride;
}

static inline void prepare_head(const Decoder &d, const float *angles, float scale, float *head) {
    if (scale != 1.0f) {
        for_lanes(d.head_dim, [&](int64_t i, int64_t n) {
            store_some(head + i, n, mul(load_some(head + i, n), broadcast(scale)));
        });
    }
    if (d.rotary_dim > 0) rotate(d, angles, head);
}

// Features of all decodes: query [kv_heads, decodes, group, m], key [kv_heads, decodes, m].
struct DecodeFeatures {
    float *query, *key;

    DecodeFeatures(Arena &a, const Decoder &d, int64_t num_decodes)
        : query(a.take<float>(num_decodes * d.num_heads * d.num_features)),
          key(a.take<float>(num_decodes * d.num_kv_heads * d.num_features)) {}
};

// Decodes whose features are computed together share what they load of a head's projection.
constexpr int64_t kFeatureRows = 8;

// The features of decodes first ... end - 1, at most kFeatureRows of num_decodes, for one head.
static void prepare_decodes(const Decoder &d, const Layer &layer, const Projected &p, int64_t first,
                            int64_t end, int64_t num_decodes, int64_t head,
                            const DecodeFeatures &to, const HeadScratch &s) {
    const int64_t group = d.num_heads / d.num_kv_heads, dim = d.head_dim, m = d.num_features;
    const float *projection = projection_of(d, layer, head);
    const auto prepare = [&](float *heads, int64_t stride, float scale, float *out, int64_t out_stride) {
        for (int64_t row = first; row < end; ++row) {
            prepare_head(d, p.angles + row * d.rotary_dim, scale, heads + row * stride);
        }
        features(d, projection, heads + first * stride, stride, end - first, s.projected, out,
                 out_stride);
    };
    const int64_t place = head * num_decodes + first;
    for (int64_t g = 0; g < group; ++g) {
        prepare(p.q + (head * group + g) * dim, d.query_size(), static_cast<float>(d.query_scale),
                to.query + (place * group + g) * m, group * m);
    }
    prepare(p.k + head * dim, d.value_size(), 1.0f, to.key + place * m, m);
}

// One head of one decode, whose features are ready. Where its state stays where it is, the token is
// left pending.
static void step_decode(const Decoder &d, const Layer &layer, const Projected &p, int64_t row,
                        int64_t num_decodes, int64_t head, const DecodeFeatures &from,
                        const float *state, float *next, const Pending &pending, bool streamed,
                        const HeadScratch &s) {
    const int64_t group = d.num_heads / d.num_kv_heads, dim = d.head_dim, m = d.num_features;
    const int64_t place = head * num_decodes + row;
    const HeadInput in{from.query + place * group * m,
                       from.key + place * m,
                       p.v + row * d.value_size() + head * dim,
                       layer.powers + head * (kChunk + 1),
                       group,
                       m,
                       dim,
                       pending};
    float *out = s.out, *mass = s.out + group * dim;
    const bool is_normalised = d.value_dim > dim;
    if (state == next) {
        step_pending(state, is_normalised ? masses_of(d, state) : nullptr, in, out, mass);
    } else {
        step_head(state, next, in, out, streamed);
        if (is_normalised) step_mass(masses_of(d, state), masses_of(d, next), in, mass);
    }
    // They sum over the whole of the next state, so they are finite only if the state is.
    if (!is_finite(out, group * d.value_dim)) p.spoil(row);
    float *y = p.y + row * d.query_size() + head * group * dim;
    for (int64_t g = 0; g < group; ++g) {
        finish_readout(d, out + g * dim, is_normalised ? mass + g : nullptr, y + g * dim);
    }
}

static inline void scale_in_place(float *x, int64_t n, float factor) {
    for_lanes(n, [&](int64_t i, int64_t c) {
        store_some(x + i, c, mul(load_some(x + i, c), broadcast(factor)));
    });
}

// Read-outs of one query head for a chunk, from the state before it.
static void read_chunk(const Decoder &d, const float *powers, int64_t length, const HeadScratch &s) {
    const int64_t e = whole_vectors(d.value_dim), m = d.num_features, c = kChunk;
    small_product({s.query, m, 1}, length, s.key_transposed, c, m, s.scores, c,
                  whole_vectors(length));
    for (int64_t i = 0; i < length; ++i) {
        for (int64_t j = 0; j <= i; ++j) s.scores[i * c + j] *= powers[i - j];
        for (int64_t j = i + 1; j < length; ++j) s.scores[i * c + j] = 0.0f;
    }
    small_product({s.query, m, 1}, length, s.state, e, m, s.out, e, e);
    for (int64_t i = 0; i < length; ++i) scale_in_place(s.out + i * e, e, powers[i + 1]);
    small_product({s.scores, c, 1}, length, s.value, e, length, s.out, e, e, true);
}

// Up to 64 tokens from `row` on. The state in `s` is the one before them, then the one after.
static void attend_chunk(const Decoder &d, const Layer &layer, const Projected &p, int64_t row,
                         int64_t length, int64_t head, const HeadScratch &s) {
    const int64_t group = d.num_heads / d.num_kv_heads, dim = d.head_dim, m = d.num_features;
    const int64_t e = whole_vectors(d.value_dim), c = kChunk;
    const float *projection = projection_of(d, layer, head);
    const float *powers = layer.powers + head * (kChunk + 1);
    float *k = p.k + row * d.value_size() + head * dim;
    for (int64_t i = 0; i < length; ++i) {
        prepare_head(d, p.angles + (row + i) * d.rotary_dim, 1.0f, k + i * d.value_size());
        extend_value(d, p.v + (row + i) * d.value_size() + head * dim, s.value + i * e);
    }
    features(d, projection, k, d.value_size(), length, s.projected, s.key, m);
    for (int64_t f = 0; f < m; ++f) {
        for (int64_t i = 0; i < c; ++i) {
            s.key_transposed[f * c + i] = i < length ? s.key[i * m + f] : 0.0f;
        }
    }
    for (int64_t g = 0; g < group; ++g) {
        const int64_t offset = (head * group + g) * dim;
        float *q = p.q + row * d.query_size() + offset;
        for (int64_t i = 0; i < length; ++i) {
            prepare_head(d, p.angles + (row + i) * d.rotary_dim, static_cast<float>(d.query_scale),
                         q + i * d.query_size());
        }
        features(d, projection, q, d.query_size(), length, s.projected, s.query, m);
        read_chunk(d, powers, length, s);
        for (int64_t i = 0; i < length; ++i) {
            if (!is_finite(s.out + i * e, e)) p.spoil(row + i);
            const float *o = s.out + i * e;
            finish_readout(d, o, d.value_dim > dim ? o + dim : nullptr,
                           p.y + (row + i) * d.query_size() + offset);
        }
    }
    for (int64_t f = 0; f < m; ++f) {
        for (int64_t i = 0; i < length; ++i) s.key_transposed[f * c + i] *= powers[length - 1 - i];
    }
    scale_in_place(s.state, m * e, powers[length]);
    small_product({s.key_transposed, c, 1}, m, s.value, e, length, s.state, e, e, true);
}

static void attend_segment(const Decoder &d, const Layer &layer, const Projected &p,
                           const Segment &segment, int64_t head, const float *state, float *next,
                           const HeadScratch &s) {
    const int64_t e = whole_vectors(d.value_dim), m = d.num_features, dim = d.head_dim;
    const bool is_normalised = d.value_dim > dim;
    for (int64_t f = 0; f < m; ++f) {
        float *row = s.state + f * e;
        std::memset(row, 0, sizeof(float) * e);
        std::memcpy(row, state + f * dim, sizeof(float) * dim);
        if (is_normalised) row[dim] = masses_of(d, state)[f];
    }
    for (int64_t start = 0; start < segment.length; start += kChunk) {
        const int64_t left = segment.length - start;
        attend_chunk(d, layer, p, segment.start + start, left < kChunk ? left : kChunk, head, s);
    }
    for (int64_t f = 0; f < m; ++f) {
        const float *row = s.state + f * e;
        std::memcpy(next + f * dim, row, sizeof(float) * dim);
        if (is_normalised) masses_of(d, next)[f] = row[dim];
    }
    if (!is_finite(s.state, m * e)) p.spoil(segment.start);
}
