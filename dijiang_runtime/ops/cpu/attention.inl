// Linear attention of one key/value head: a decode, or a part of a prompt chunk by chunk.
//
//     C tokens of a chunk    G query heads of the group    m features    e padded head dim
//
//     O = ((Φq Φkᵀ) ∘ L) V + diag(γ^i) Φq S        S' = γ^C S + Φkᵀ diag(γ^(C-j)) V
//
// L_ij = γ^(i-j) for i >= j. All exponents are at most C and never negative. Where the read-out is
// divided by the mass of the features, that is a further column of V, all ones, which is added up by
// itself: a column alone would cost as much as a vector of them.

// Features of all decodes: query [kv_heads, decodes, group, m], key [kv_heads, decodes, m].
struct DecodeFeatures {
    float *query, *key;

    DecodeFeatures(Arena &a, const Decoder &d, int64_t num_decodes)
        : query(a.take<float>(num_decodes * d.num_heads * d.num_features)),
          key(a.take<float>(num_decodes * d.num_kv_heads * d.num_features)) {}
};

// Decodes whose features are computed together share what they load of a head's projection.
constexpr int64_t kFeatureRows = 8;

// Rotate the queries and keys of decodes first ... end - 1, at most kFeatureRows of num_decodes, for
// one head, and make features of the queries.
static void prepare_decodes(const Decoder &d, const Layer &layer, const Projected &p, int64_t first,
                            int64_t end, int64_t num_decodes, int64_t head,
                            const DecodeFeatures &to, const HeadScratch &s) {
    const int64_t group = d.num_heads / d.num_kv_heads, dim = d.head_dim, m = d.num_features;
    const float *projection = projection_of(d, layer, head);
    const int64_t place = head * num_decodes + first, rows = end - first;
    const auto rotate_all = [&](float *heads, int64_t stride, const NormWeights &norm, float scale) {
        for (int64_t row = first; row < end; ++row) {
            prepare_head(d, norm, p.angles + row * d.rotary_dim, scale, heads + row * stride);
        }
    };
    const int64_t stride = d.query_size();
    for (int64_t g = 0; g < group; ++g) {
        float *queries = p.q + (head * group + g) * dim;
        rotate_all(queries, stride, layer.query_norm, static_cast<float>(d.query_scale));
        features(d, projection, queries + first * stride, stride, rows, s.projected,
                 to.query + (place * group + g) * m, group * m);
    }
    rotate_all(p.k + head * dim, d.value_size(), layer.key_norm, 1.0f);
}

// The features of those decodes' own keys, which are rotated.
static void prepare_own_keys(const Decoder &d, const Layer &layer, const Projected &p, int64_t first,
                             int64_t end, int64_t num_decodes, int64_t head, const DecodeFeatures &to,
                             const HeadScratch &s) {
    const float *keys = p.k + first * d.value_size() + head * d.head_dim;
    features(d, projection_of(d, layer, head), keys, d.value_size(), end - first, s.projected,
             to.key + (head * num_decodes + first) * d.num_features, d.num_features);
}

// One head of one decode: read-outs and masses, in `s`, and whether they are finite. They sum over the
// whole of the next state, so they are finite only if the state is. Where it stays where it is, the
// token is left pending.
static bool step_state(const Decoder &d, const float *state, float *next, const HeadInput &in,
                       bool streamed, const HeadScratch &s) {
    const bool is_normalised = d.value_dim > d.head_dim;
    if (state == next) {
        step_pending(state, is_normalised ? masses_of(d, state) : nullptr, in, s.out, s.mass);
    } else {
        step_head(state, next, in, s.out, streamed);
        if (is_normalised) step_mass(masses_of(d, state), masses_of(d, next), in, s.mass);
    }
    return is_finite(s.out, in.group * in.value_dim) &&
           (!is_normalised || is_finite(s.mass, in.group));
}

// One head of one decode, whose features are ready.
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
    if (!step_state(d, state, next, in, streamed, s)) p.spoil(row);
    float *y = p.y + row * d.query_size() + head * group * dim;
    for (int64_t g = 0; g < group; ++g) {
        const float *mass = d.value_dim > dim ? s.mass + g : nullptr;
        finish_readout(d, s.out + g * dim, mass, y + g * dim);
    }
}

static inline void scale_in_place(float *x, int64_t n, float factor) {
    for_lanes(n, [&](int64_t i, int64_t c) {
        store_some(x + i, c, mul(load_some(x + i, c), broadcast(factor)));
    });
}

// Read-outs of one query head for a chunk, and their masses, from the state before it.
static void read_chunk(const Decoder &d, const float *powers, int64_t length, const HeadScratch &s) {
    const int64_t e = whole_vectors(d.head_dim), m = d.num_features, c = kChunk;
    const bool is_normalised = d.value_dim > d.head_dim;
    const Strided query{s.query, 1, c};
    small_product(query, length, s.state, e, m, s.out, e, e);
    for (int64_t i = 0; i < length; ++i) scale_in_place(s.out + i * e, e, powers[i + 1]);
    if (is_normalised) {
        for (int64_t i = 0; i < length; i += kLanes) {
            Vec total = broadcast(0.0f);
            for (int64_t f = 0; f < m; ++f) {
                total = fma(load(s.query + f * c + i), broadcast(s.masses[f]), total);
            }
            store(s.mass + i, mul(total, load(powers + i + 1)));
        }
    }
    // Rows of 16 tokens see nothing beyond them.
    for (int64_t first = 0; first < length; first += kLanes) {
        const int64_t rows = std::min(length - first, kLanes), seen = first + kLanes;
        float *scores = s.scores + first * c;
        small_product({s.query + first, 1, c}, rows, s.key, c, m, scores, c, seen);
        for (int64_t r = 0; r < rows; ++r) {
            float *row = scores + r * c;
            const float *decay = s.decays + c - 1 - first - r;
            Vec total = broadcast(0.0f);
            for (int64_t j = 0; j < first; j += kLanes) {
                const Vec score = mul(load(row + j), load(decay + j));
                store(row + j, score);
                total = add(total, score);
            }
            const Vec last = mul(load(row + first), load(decay + first));
            store(row + first, broadcast(0.0f));
            store_first(row + first, r + 1, last);
            total = add(total, load(row + first));
            if (is_normalised) s.mass[first + r] += sum_lanes(total);
        }
        small_product({scores, c, 1}, rows, s.value, e, std::min(seen, length), s.out + first * e, e, e,
                      true);
    }
}

// Take a chunk's keys, which are overwritten, and values into the state.
static void update_state(const Decoder &d, const float *powers, int64_t length, const HeadScratch &s) {
    const int64_t e = whole_vectors(d.head_dim), m = d.num_features, c = kChunk;
    // What is left of each token at the end of the chunk, and nothing of those that are missing.
    const float *left = s.decays + c - length;
    for (int64_t f = 0; f < m; ++f) {
        Vec total = broadcast(0.0f);
        for (int64_t i = 0; i < whole_vectors(length); i += kLanes) {
            const Vec decayed = mul(load(s.key + f * c + i), load(left + i));
            store(s.key + f * c + i, decayed);
            total = add(total, decayed);
        }
        s.masses[f] = s.masses[f] * powers[length] + sum_lanes(total);
    }
    scale_in_place(s.state, m * e, powers[length]);
    small_product({s.key, c, 1}, m, s.value, e, length, s.state, e, e, true);
}

// Up to 64 tokens from `row` on. The state in `s` is the one before them, then the one after.
static void attend_chunk(const Decoder &d, const Layer &layer, const Projected &p, int64_t row,
                         int64_t length, int64_t head, const HeadScratch &s) {
    const int64_t group = d.num_heads / d.num_kv_heads, dim = d.head_dim, e = whole_vectors(dim);
    const bool is_normalised = d.value_dim > dim;
    const float *powers = layer.powers + head * (kChunk + 1);
    prepare_keys(d, layer, p, row, length, head, s.head, kChunk);
    features_of_tokens(d, projection_of(d, layer, head), s.head, kChunk, length, s.projected, s.key);
    copy_values(d, p, row, length, head, s.value);
    for (int64_t query_head = head * group; query_head < (head + 1) * group; ++query_head) {
        prepare_queries(d, layer, p, row, length, head, query_head, s);
        read_chunk(d, powers, length, s);
        for (int64_t i = 0; i < length; ++i) {
            const float *o = s.out + i * e, *mass = is_normalised ? s.mass + i : nullptr;
            if (!is_finite(o, e) || (mass && !std::isfinite(*mass))) p.spoil(row + i);
            finish_readout(d, o, mass, p.y + (row + i) * d.query_size() + query_head * dim);
        }
    }
    update_state(d, powers, length, s);
}

// A prompt's part, with `attend_one(row, length)` for each chunk of it.
template <class Function>
static void attend_segment(const Decoder &d, const Layer &layer, const Projected &p,
                           const Segment &segment, int64_t head, const float *state, float *next,
                           const HeadScratch &s, Function attend_one) {
    const int64_t e = whole_vectors(d.head_dim), m = d.num_features, dim = d.head_dim;
    const bool is_normalised = d.value_dim > dim;
    const float *powers = layer.powers + head * (kChunk + 1);
    for (int64_t i = 0; i < kChunk; ++i) {
        s.decays[i] = powers[kChunk - 1 - i];
        s.decays[kChunk + i] = 0.0f;
    }
    for (int64_t f = 0; f < m; ++f) {
        for_lanes(dim, [&](int64_t j, int64_t n) {
            store(s.state + f * e + j, load_some(state + f * dim + j, n));
        });
        s.masses[f] = is_normalised ? masses_of(d, state)[f] : 0.0f;
    }
    for (int64_t start = 0; start < segment.length; start += kChunk) {
        attend_one(segment.start + start, std::min(segment.length - start, kChunk));
    }
    for (int64_t f = 0; f < m; ++f) {
        std::memcpy(next + f * dim, s.state + f * e, sizeof(float) * dim);
        if (is_normalised) masses_of(d, next)[f] = s.masses[f];
    }
    if (!is_finite(s.state, m * e) || !is_finite(s.masses, m)) p.spoil(segment.start);
}
