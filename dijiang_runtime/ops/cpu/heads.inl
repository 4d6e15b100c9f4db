// What a layer's attention works on: queries, keys and values of one head, and memory for them.
//
//     C tokens of a chunk    m features    e padded head dim

// What a layer has projected, rows of all heads; queries and keys are rotated in place.
struct Projected {
    float *q, *k;              // [rows, query_size], [rows, value_size]
    const float *v;            // [rows, value_size]
    const int64_t *positions;  // [rows]
    const float *angles;       // [rows, rotary_dim]
    float *y;                  // The read-outs, [rows, query_size]
    uint8_t *finite;           // [rows]

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

// Memory of one thread. Tokens of a chunk are next to each other where a row has C.
struct HeadScratch {
    float *projected;   // [projection columns, C]; of decodes [C, padded projection columns]
    float *head;        // Queries or keys, [head_dim, C]
    float *query, *key; // Features, [m, C]
    float *value, *out; // [C, e]
    float *mass;        // Of each read-out, [C]
    float *scores;      // [C, C]
    float *state;       // [m, e]
    float *masses;      // Of the state's features, [m]
    float *decays;      // γ^(C-1), ..., γ, 1, and then C zeros

    HeadScratch(Arena &w, const Decoder &d) {
        const int64_t e = whole_vectors(d.head_dim), m = d.num_features;
        // A decode has the read-outs and masses of one group in place of the tokens of a chunk.
        const int64_t rows = d.num_heads > kChunk ? d.num_heads : kChunk;
        projected = w.take<float>(kChunk * whole_vectors(d.projection_columns));
        head = w.take<float>(d.head_dim * kChunk);
        query = w.take<float>(m * kChunk);
        key = w.take<float>(m * kChunk);
        value = w.take<float>(kChunk * e);
        out = w.take<float>(rows * e);
        mass = w.take<float>(rows);
        scores = w.take<float>(kChunk * kChunk);
        state = w.take<float>(m * e);
        masses = w.take<float>(m);
        decays = w.take<float>(2 * kChunk);
    }
};

// What sums are divided by. The bound only guards against underflow; a mass that is NaN stays NaN.
static inline float bounded_mass(float mass) { return mass < 1e-30f ? 1e-30f : mass; }

// The read-out of one query head as the layer passes it on: o [head_dim], divided by the mass.
static inline void finish_readout(const Decoder &d, const float *o, const float *mass, float *y) {
    if (mass == nullptr) {
        for_lanes(d.head_dim, [&](int64_t i, int64_t n) { store_some(y + i, n, load_some(o + i, n)); });
        return;
    }
    const Vec whole = broadcast(bounded_mass(*mass));
    for_lanes(d.head_dim, [&](int64_t i, int64_t n) {
        store_some(y + i, n, div(load_some(o + i, n), whole));
    });
}

static inline const float *projection_of(const Decoder &d, const Layer &layer, int64_t head) {
    return layer.projection + head * d.projection_stride;
}

// Queries have the parent's scale, keys none.
static inline void prepare_head(const Decoder &d, const NormWeights &norm, const float *angles,
                                float scale, float *head) {
    if (norm.weight) normalise(head, d.head_dim, kRmsNorm, d.norm_eps, norm, head);
    if (scale != 1.0f) {
        for_lanes(d.head_dim, [&](int64_t i, int64_t n) {
            store_some(head + i, n, mul(load_some(head + i, n), broadcast(scale)));
        });
    }
    if (d.rotary_dim > 0) rotate(d, angles, head);
}

// Rotate one head of up to 64 tokens from `row` on: in place, and to [head_dim, to_stride].
static void rotate_tokens(const Decoder &d, const Projected &p, int64_t row, int64_t length, float *heads,
                          int64_t stride, const NormWeights &norm, float scale, float *to,
                          int64_t to_stride) {
    for (int64_t i = 0; i < length; ++i) {
        prepare_head(d, norm, p.angles + (row + i) * d.rotary_dim, scale, heads + i * stride);
    }
    transpose(heads, stride, length, d.head_dim, to, to_stride);
}

// Those of a query head, which stay in `s.head`, and their features.
static void prepare_queries(const Decoder &d, const Layer &layer, const Projected &p, int64_t row,
                            int64_t length, int64_t head, int64_t query_head, const HeadScratch &s) {
    float *queries = p.q + row * d.query_size() + query_head * d.head_dim;
    rotate_tokens(d, p, row, length, queries, d.query_size(), layer.query_norm,
                  static_cast<float>(d.query_scale), s.head, kChunk);
    features_of_tokens(d, projection_of(d, layer, head), s.head, kChunk, length, s.projected, s.query);
}

// Those of a key head, [head_dim, to_stride].
static void prepare_keys(const Decoder &d, const Layer &layer, const Projected &p, int64_t row,
                         int64_t length, int64_t head, float *to, int64_t to_stride) {
    float *keys = p.k + row * d.value_size() + head * d.head_dim;
    rotate_tokens(d, p, row, length, keys, d.value_size(), layer.key_norm, 1.0f, to, to_stride);
}

// The values of one head, [length, e].
static void copy_values(const Decoder &d, const Projected &p, int64_t row, int64_t length, int64_t head,
                        float *to) {
    const int64_t e = whole_vectors(d.head_dim);
    for (int64_t i = 0; i < length; ++i) {
        const float *v = p.v + (row + i) * d.value_size() + head * d.head_dim;
        for_lanes(d.head_dim, [&](int64_t j, int64_t n) { store(to + i * e + j, load_some(v + j, n)); });
    }
}
