// Rotation and feature map of queries and keys, for some tokens of one head.

// Products of small row-major matrices: C = A B, or C += A B. B has whole vectors of columns.
// Each output is one chain of sums over k, so its bits do not depend on the shape of the rest.
struct Strided {
    const float *data;
    int64_t row, column;  // Strides: element (i, k) is data[i * row + k * column].
};

template <int Rows, int Vectors>
static inline void small_tile(const Strided &a, const float *b, int64_t ldb, int64_t depth, float *c,
                              int64_t ldc, bool accumulate) {
    Vec total[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) {
            total[r][v] = accumulate ? load(c + r * ldc + v * kLanes) : broadcast(0.0f);
        }
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec row[Vectors];
        for (int v = 0; v < Vectors; ++v) row[v] = load(b + k * ldb + v * kLanes);
        for (int r = 0; r < Rows; ++r) {
            const Vec x = broadcast(a.data[r * a.row + k * a.column]);
            for (int v = 0; v < Vectors; ++v) total[r][v] = fma(x, row[v], total[r][v]);
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * kLanes, total[r][v]);
    }
}

// So many sums stay in registers, and are enough to hide how long each takes.
template <int Vectors>
constexpr int kSmallRows = kMaxRows < 4 ? kMaxRows : kTileVectors < 4 || Vectors > 2 ? 4 : 8;

template <int Vectors>
static void small_rows(Strided a, int64_t rows, const float *b, int64_t ldb, int64_t depth, float *c,
                       int64_t ldc, bool accumulate) {
    constexpr int block = kSmallRows<Vectors>;
    int64_t r = 0;
    for (; r + block <= rows; r += block, a.data += block * a.row, c += block * ldc) {
        small_tile<block, Vectors>(a, b, ldb, depth, c, ldc, accumulate);
    }
    for (; r < rows; ++r, a.data += a.row, c += ldc) {
        small_tile<1, Vectors>(a, b, ldb, depth, c, ldc, accumulate);
    }
}

template <int Vectors = kTileVectors>
static void small_columns(int64_t vectors, const Strided &a, int64_t rows, const float *b, int64_t ldb,
                          int64_t depth, float *c, int64_t ldc, bool accumulate) {
    if (vectors == Vectors) {
        small_rows<Vectors>(a, rows, b, ldb, depth, c, ldc, accumulate);
    } else if constexpr (Vectors > 1) {
        small_columns<Vectors - 1>(vectors, a, rows, b, ldb, depth, c, ldc, accumulate);
    }
}

static void small_product(const Strided &a, int64_t rows, const float *b, int64_t ldb, int64_t depth,
                          float *c, int64_t ldc, int64_t columns, bool accumulate = false) {
    constexpr int64_t wide = kTileVectors * kLanes;
    for (int64_t j = 0; j < columns; j += wide) {
        const int64_t vectors = (std::min(columns - j, wide) + kLanes - 1) / kLanes;
        small_columns(vectors, a, rows, b + j, ldb, depth, c + j, ldc, accumulate);
    }
}

// to[c][r] = from[r][c] for all rows, and 0 for rows that are missing from a whole vector of them.
static void transpose(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to,
                      int64_t to_stride) {
    for (int64_t r = 0; r < rows; r += kLanes) {
        for (int64_t c = 0; c < columns; c += kLanes) {
            transpose_block(from + r * stride + c, stride, std::min(rows - r, kLanes),
                            std::min(columns - c, kLanes), to + c * to_stride + r, to_stride);
        }
    }
}

// Cosine and sine of each pair of dimensions at a position: [rotary_dim / 2] each.
static void rotary_angles(const Decoder &d, int64_t position, float *cosine, float *sine) {
    for (int64_t i = 0; i < d.rotary_dim / 2; ++i) {
        // In float64: in float32 the angle would be off by 0.01 at position 100,000.
        const double angle = static_cast<double>(position) * d.rotary_frequencies[i];
        cosine[i] = static_cast<float>(std::cos(angle));
        sine[i] = static_cast<float>(std::sin(angle));
    }
}

// Rotate the leading dimensions of one head, in place. `angles` is [2, rotary_dim / 2].
static inline void rotate(const Decoder &d, const float *angles, float *head) {
    const int64_t half = d.rotary_dim / 2;
    for_lanes(half, [&](int64_t i, int64_t count) {
        const Vec cosine = load_some(angles + i, count), sine = load_some(angles + half + i, count);
        const Vec first = load_some(head + i, count), second = load_some(head + half + i, count);
        store_some(head + i, count, sub(mul(first, cosine), mul(second, sine)));
        store_some(head + half + i, count, fma(second, cosine, mul(first, sine)));
    });
}

// softmax(sign x) of n numbers.
static inline void softmax(const float *x, int64_t n, float sign, float *out) {
    const Vec s = broadcast(sign);
    Vec largest = broadcast(-3.0e38f);
    for_lanes(n, [&](int64_t i, int64_t count) {
        largest = max(mul(s, load_some(x + i, count, -3.0e38f * sign)), largest);
    });
    const Vec top = broadcast(largest_lane(largest));
    Vec total = broadcast(0.0f);
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec e = exponential(sub(mul(s, load_some(x + i, count)), top));
        store_some(out + i, count, e);
        total = add(total, load_some(out + i, count));
    });
    const Vec share = broadcast(1.0f / sum_lanes(total));
    for_lanes(n, [&](int64_t i, int64_t count) {
        store_some(out + i, count, mul(load_some(out + i, count), share));
    });
}

// Features [rows, num_features], `out_stride` apart, of heads [rows, head_dim] that are `stride`
// apart. `scratch` holds [rows, padded projection columns].
static void features(const Decoder &d, const float *projection, const float *head, int64_t stride,
                     int64_t rows, float *scratch, float *out, int64_t out_stride) {
    const int64_t columns = d.projection_columns;
    const int64_t padded = (columns + kLanes - 1) / kLanes * kLanes;
    small_product({head, stride, 1}, rows, projection, padded, d.head_dim, scratch, padded, padded);
    for (int64_t r = 0; r < rows; ++r) {
        softmax(scratch + r * padded, columns, 1.0f, out + r * out_stride);
        if (d.negated_half) {
            softmax(scratch + r * padded, columns, -1.0f, out + r * out_stride + columns);
        }
    }
}

// softmax(sign x) of n numbers for each of up to 64 tokens, which are next to each other: x and out
// [n, kChunk].
static void softmax_of_tokens(const float *x, int64_t n, float sign, int64_t tokens, float *out) {
    const Vec s = broadcast(sign);
    for (int64_t t = 0; t < tokens; t += kLanes) {
        Vec largest = broadcast(-3.0e38f), total = broadcast(0.0f);
        for (int64_t i = 0; i < n; ++i) largest = max(mul(s, load(x + i * kChunk + t)), largest);
        for (int64_t i = 0; i < n; ++i) {
            const Vec e = exponential(sub(mul(s, load(x + i * kChunk + t)), largest));
            store(out + i * kChunk + t, e);
            total = add(total, e);
        }
        const Vec share = div(broadcast(1.0f), total);
        for (int64_t i = 0; i < n; ++i) {
            store(out + i * kChunk + t, mul(load(out + i * kChunk + t), share));
        }
    }
}

// Features [num_features, kChunk] of a head's tokens [head_dim, *], up to 64 of them, in whole
// vectors. `scratch` holds [projection columns, kChunk].
static void features_of_tokens(const Decoder &d, const float *projection, const float *head,
                               int64_t head_stride, int64_t tokens, float *scratch, float *out) {
    const int64_t columns = d.projection_columns, whole = whole_vectors(tokens);
    const Strided directions{projection, 1, whole_vectors(columns)};
    small_product(directions, columns, head, head_stride, d.head_dim, scratch, kChunk, whole);
    softmax_of_tokens(scratch, columns, 1.0f, whole, out);
    if (d.negated_half) softmax_of_tokens(scratch, columns, -1.0f, whole, out + columns * kChunk);
}
