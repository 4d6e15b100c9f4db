// Softmax attention to the last W tokens, the token itself included, and to the first S, the sinks,
// beside linear attention to all others (`ops/windowed.py`):
//
//     o = (sum_j e^(q k_j) v_j + e^mix far) / (sum_j e^(q k_j) + e^mix mass)        j near
//
// `far` and `mass` are the sums of the linear part, which takes tokens in W positions late. The cache
// of a head, [2, S + W + 1, head_dim], holds keys and values, rotated: position p < S in place p, and
// any position p in place S + p mod (W + 1). So a token overwrites none that its step reads, and the
// step may be repeated.

static inline int64_t ring_place(const Decoder &d, int64_t position) {
    return d.sinks + position % (d.window + 1);
}

// Of the token W positions before, which leaves the window.
static inline int64_t leaving_place(const Decoder &d, int64_t position) {
    return ring_place(d, position + 1);
}

// Whether that is a token at all, and no sink.
static inline bool has_far_token(const Decoder &d, int64_t position) {
    return position - d.window >= d.sinks;
}

// Near tokens of a chunk are next to each other in its band: the W before it, and then its own.
struct WindowScratch {
    int64_t band, sinks;  // Tokens, in whole vectors.
    int64_t seen;         // Tokens of the band that any of 16 tokens may see.
    float *keys;                     // [head_dim, band]
    float *values;                   // [band, e]
    float *sink_keys, *sink_values;  // [head_dim, sinks], [sinks, e]
    float *weights;                  // [16, sinks + seen]
    float *mix;                      // Of each token of a chunk.
    float *out;                      // [16, e]

    WindowScratch(Arena &a, const Decoder &d)
        : band(d.window > 0 ? whole_vectors(d.window) + kChunk : 0),
          sinks(whole_vectors(d.sinks)),
          seen(d.window > 0 ? whole_vectors(d.window) + kLanes : 0) {
        const int64_t e = whole_vectors(d.head_dim);
        keys = a.take<float>(d.head_dim * band);
        values = a.take<float>(band * e);
        sink_keys = a.take<float>(d.head_dim * sinks);
        sink_values = a.take<float>(sinks * e);
        weights = a.take<float>(kLanes * (sinks + seen));
        mix = a.take<float>(kChunk);
        out = a.take<float>(kLanes * e);
    }
};

// What the linear sums are multiplied with, and what the sum of all is divided by.
struct Shares {
    float far, total;
};

// Turns the scores of near tokens, -infinity where one is not seen, into weights. n is whole vectors.
static inline Shares weigh(float *scores, int64_t n, float mix, float mass) {
    const float bounded = bounded_mass(mass);
    // In logs: a mix far above the scores must not turn into a division of 0 by 0.
    const float far = mass <= 0.0f ? kNone : mix + std::log(bounded);
    const float top = std::max(far, largest_of(scores, n));
    const Weights weights(top, 1.0f);
    Vec total = broadcast(0.0f);
    for (int64_t j = 0; j < n; j += kLanes) {
        const Vec weight = weights.of(load(scores + j));
        store(scores + j, weight);
        total = add(total, weight);
    }
    const float of_far = std::exp(far - top);
    return {of_far / bounded, sum_lanes(total) + of_far};
}

// y = (near + far linear) / total
static inline void mix_in_far(const Decoder &d, const float *near, const Shares &shares,
                              const float *linear, float *y) {
    const Vec far = broadcast(shares.far), share = broadcast(1.0f / shares.total);
    for_lanes(d.head_dim, [&](int64_t i, int64_t n) {
        const Vec sum = fma(far, load_some(linear + i, n), load_some(near + i, n));
        store_some(y + i, n, mul(sum, share));
    });
}

// The features of the keys that decodes first ... end - 1, at most kFeatureRows, push out of their
// windows: none where nothing goes.
template <class CacheOf>
static void prepare_far_keys(const Decoder &d, const Layer &layer, const Projected &p, int64_t first,
                             int64_t end, int64_t num_decodes, int64_t head, CacheOf cache_of,
                             const DecodeFeatures &to, const HeadScratch &s) {
    const int64_t dim = d.head_dim, m = d.num_features;
    float *out = to.key + (head * num_decodes + first) * m;
    for (int64_t row = first; row < end; ++row) {
        const float *key = cache_of(row) + leaving_place(d, p.positions[row]) * dim;
        std::memcpy(s.head + (row - first) * dim, key, sizeof(float) * dim);
    }
    features(d, projection_of(d, layer, head), s.head, dim, end - first, s.projected, out, m);
    for (int64_t row = first; row < end; ++row) {
        if (has_far_token(d, p.positions[row])) continue;
        std::memset(out + (row - first) * m, 0, sizeof(float) * m);
    }
}

// The cache with the token at this position. `next` may be `cache`.
static void renew_cache(const Decoder &d, const float *cache, int64_t position, const float *key,
                        const float *value, float *next) {
    const int64_t dim = d.head_dim;
    if (next != cache) std::memcpy(next, cache, sizeof(float) * 2 * d.cache_size());
    const auto put = [&](int64_t place) {
        std::memcpy(next + place * dim, key, sizeof(float) * dim);
        std::memcpy(next + d.cache_size() + place * dim, value, sizeof(float) * dim);
    };
    put(ring_place(d, position));
    if (position < d.sinks) put(position);
}

constexpr int64_t kKeysAhead = 16;

// What a decode reads of its cache, its own token included, and whether all of that is finite: the
// score of an infinite key may be -infinity, which leaves no trace in a sum.
static bool read_cache(const Decoder &d, const float *query, float mix, const float *cache,
                       int64_t position, const float *linear, float mass, const WindowScratch &w,
                       float *y) {
    const int64_t dim = d.head_dim, places = d.sinks + d.window + 1;
    const int64_t leaving = leaving_place(d, position);
    const float scale = static_cast<float>(d.score_scale);
    const float *values = cache + places * dim;
    float spoilt = 0.0f;  // NaN once a score is not finite.
    for (int64_t j = 0; j < whole_vectors(places); ++j) {
        const bool is_there = j < d.sinks ? j <= position - d.window : j - d.sinks <= position;
        w.weights[j] = kNone;
        // Keys a little ahead, and the values that are read after them.
        for (int64_t i = 0; i < dim; i += kLanes) {
            prefetch(cache + (j + kKeysAhead) * dim + i);
            prefetch(values + j * dim + i);
        }
        if (j >= places || j == leaving || !is_there) continue;
        w.weights[j] = scale * dot(query, cache + j * dim, dim);
        spoilt += 0.0f * w.weights[j];
    }
    const Shares shares = weigh(w.weights, whole_vectors(places), mix, mass);
    std::memset(w.out, 0, sizeof(float) * dim);
    for (int64_t j = 0; j < places; ++j) {
        const Vec weight = broadcast(w.weights[j]);
        for_lanes(dim, [&](int64_t i, int64_t n) {
            const Vec sum = fma(weight, load_some(values + j * dim + i, n), load_some(w.out + i, n));
            store_some(w.out + i, n, sum);
        });
    }
    mix_in_far(d, w.out, shares, linear, y);
    return spoilt == 0.0f && is_finite(y, dim);
}

// One head of one decode, like `step_decode`.
static void step_windowed(const Decoder &d, const Layer &layer, const Projected &p, int64_t row,
                          int64_t num_decodes, int64_t head, const DecodeFeatures &from,
                          const float *state, float *next, const float *cache, float *next_cache,
                          const Pending &pending, bool streamed, const HeadScratch &s,
                          const WindowScratch &w) {
    const int64_t group = d.num_heads / d.num_kv_heads, dim = d.head_dim, m = d.num_features;
    const int64_t place = head * num_decodes + row, position = p.positions[row];
    const HeadInput in{from.query + place * group * m,
                       from.key + place * m,
                       cache + d.cache_size() + leaving_place(d, position) * dim,
                       layer.powers + head * (kChunk + 1),
                       group,
                       m,
                       dim,
                       pending};
    bool finite = step_state(d, state, next, in, streamed, s);
    const int64_t of_key = row * d.value_size() + head * dim;
    renew_cache(d, cache, position, p.k + of_key, p.v + of_key, next_cache);
    for (int64_t g = 0; g < group; ++g) {
        const int64_t query_head = head * group + g, of_query = row * d.query_size() + query_head * dim;
        const float *query = p.q + of_query;
        const float mix =
            layer.window_mix[query_head] + dot(query, layer.window_mix_query + query_head * dim, dim);
        finite &= read_cache(d, query, mix, next_cache, position, s.out + g * dim, s.mass[g], w,
                             p.y + of_query);
    }
    if (!finite) p.spoil(row);
}

// Call f(place, keys, stride, value) for each token before the given position that is kept: where it is
// in a cache, and where its key [head_dim], `stride` apart, and its value are in the scratch.
template <class Function>
static void for_kept_tokens(const Decoder &d, const WindowScratch &w, int64_t position, Function f) {
    const int64_t e = whole_vectors(d.head_dim);
    for (int64_t p = std::max(position - d.window, int64_t{0}); p < position; ++p) {
        const int64_t b = p - position + d.window;
        f(ring_place(d, p), w.keys + b, w.band, w.values + b * e);
    }
    for (int64_t p = 0; p < std::min(d.sinks, position); ++p) {
        f(p, w.sink_keys + p, w.sinks, w.sink_values + p * e);
    }
}

// The band and the sinks before the token at this position.
static void open_cache(const Decoder &d, const float *cache, int64_t position, const WindowScratch &w) {
    const int64_t dim = d.head_dim, e = whole_vectors(dim);
    std::memset(w.keys, 0, sizeof(float) * dim * w.band);
    std::memset(w.values, 0, sizeof(float) * w.band * e);
    std::memset(w.sink_keys, 0, sizeof(float) * dim * w.sinks);
    std::memset(w.sink_values, 0, sizeof(float) * w.sinks * e);
    for_kept_tokens(d, w, position, [&](int64_t place, float *keys, int64_t stride, float *value) {
        const float *key = cache + place * dim;
        for (int64_t i = 0; i < dim; ++i) keys[i * stride] = key[i];
        std::memcpy(value, key + d.cache_size(), sizeof(float) * dim);
    });
}

// The cache before the token at this position, and whether all of it is finite.
static bool close_cache(const Decoder &d, const WindowScratch &w, int64_t position, float *cache) {
    const int64_t dim = d.head_dim;
    std::memset(cache, 0, sizeof(float) * 2 * d.cache_size());
    for_kept_tokens(d, w, position, [&](int64_t place, float *keys, int64_t stride, float *value) {
        float *key = cache + place * dim;
        for (int64_t i = 0; i < dim; ++i) key[i] = keys[i * stride];
        std::memcpy(key + d.cache_size(), value, sizeof(float) * dim);
    });
    return is_finite(cache, 2 * d.cache_size());
}

// Scores of n tokens, of which those from `first` to `last` are seen.
static inline void show_only(float *scores, int64_t n, int64_t first, int64_t last, float scale) {
    for (int64_t j = 0; j < n; j += kLanes) {
        store(scores + j, mul(load(scores + j), broadcast(scale)));
    }
    std::fill(scores, scores + std::min(std::max(first, int64_t{0}), n), kNone);
    std::fill(scores + std::min(std::max(last + 1, int64_t{0}), n), scores + n, kNone);
}

// 16 tokens of a chunk at most, from the given one on, which is at this position: read-outs of near
// tokens, and with them those of the linear part that are in `s`.
static void read_band(const Decoder &d, const Projected &p, int64_t row, int64_t first, int64_t rows,
                      int64_t position, int64_t query_head, const HeadScratch &s,
                      const WindowScratch &w) {
    const int64_t dim = d.head_dim, e = whole_vectors(dim), columns = w.sinks + w.seen;
    const float scale = static_cast<float>(d.score_scale);
    const Strided query{s.head + first, 1, kChunk};
    float *of_band = w.weights + w.sinks;
    small_product(query, rows, w.sink_keys, w.sinks, dim, w.weights, columns, w.sinks);
    small_product(query, rows, w.keys + first, w.band, dim, of_band, columns, w.seen);
    Shares shares[kLanes];
    for (int64_t r = 0; r < rows; ++r) {
        float *scores = w.weights + r * columns;
        // Column j of the band, counted from `first` on, is W - j positions before `position`.
        const int64_t begin = std::max(r + 1, d.window - position);
        show_only(scores, w.sinks, 0, std::min(d.sinks - 1, position + r - d.window), scale);
        show_only(scores + w.sinks, w.seen, begin, r + d.window, scale);
        shares[r] = weigh(scores, columns, w.mix[first + r], s.mass[first + r]);
    }
    small_product({w.weights, columns, 1}, rows, w.sink_values, e, w.sinks, w.out, e, e);
    small_product({of_band, columns, 1}, rows, w.values + first * e, e, w.seen, w.out, e, e, true);
    for (int64_t r = 0; r < rows; ++r) {
        const float *linear = s.out + (first + r) * e;
        float *y = p.y + (row + first + r) * d.query_size() + query_head * dim;
        mix_in_far(d, w.out + r * e, shares[r], linear, y);
        if (!is_finite(linear, e) || !std::isfinite(s.mass[first + r]) || !is_finite(y, dim)) {
            p.spoil(row + first + r);
        }
    }
}

// Like `attend_chunk`. The band holds the W tokens before these, then those before the next ones.
static void attend_windowed_chunk(const Decoder &d, const Layer &layer, const Projected &p, int64_t row,
                                  int64_t length, int64_t head, const HeadScratch &scratch,
                                  const WindowScratch &w) {
    const int64_t group = d.num_heads / d.num_kv_heads, dim = d.head_dim, e = whole_vectors(dim);
    const int64_t position = p.positions[row];
    const float *powers = layer.powers + head * (kChunk + 1);
    prepare_keys(d, layer, p, row, length, head, w.keys + d.window, w.band);
    copy_values(d, p, row, length, head, w.values + d.window * e);
    for (int64_t i = 0; i < length && position + i < d.sinks; ++i) {
        const int64_t b = d.window + i;
        for (int64_t j = 0; j < dim; ++j) {
            w.sink_keys[j * w.sinks + position + i] = w.keys[j * w.band + b];
        }
        std::memcpy(w.sink_values + (position + i) * e, w.values + b * e, sizeof(float) * e);
    }
    HeadScratch s = scratch;
    s.value = w.values;
    features_of_tokens(d, projection_of(d, layer, head), w.keys, w.band, length, s.projected, s.key);
    // Sinks stay near, and before the beginning there is nothing.
    const int64_t staying = std::min(d.sinks + d.window - position, length);
    for (int64_t f = 0; f < d.num_features; ++f) {
        for (int64_t i = 0; i < staying; ++i) s.key[f * kChunk + i] = 0.0f;
    }
    for (int64_t query_head = head * group; query_head < (head + 1) * group; ++query_head) {
        prepare_queries(d, layer, p, row, length, head, query_head, s);
        for (int64_t i = 0; i < length; i += kLanes) {
            Vec mix = broadcast(layer.window_mix[query_head]);
            for (int64_t j = 0; j < dim; ++j) {
                const Vec factor = broadcast(layer.window_mix_query[query_head * dim + j]);
                mix = fma(load(s.head + j * kChunk + i), factor, mix);
            }
            store(w.mix + i, mix);
        }
        read_chunk(d, powers, length, s);
        for (int64_t first = 0; first < length; first += kLanes) {
            read_band(d, p, row, first, std::min(length - first, kLanes), position + first, query_head, s,
                      w);
        }
    }
    update_state(d, powers, length, s);
    for (int64_t i = 0; i < dim; ++i) {
        std::memmove(w.keys + i * w.band, w.keys + i * w.band + length, sizeof(float) * d.window);
    }
    std::memmove(w.values, w.values + length * e, sizeof(float) * d.window * e);
}
