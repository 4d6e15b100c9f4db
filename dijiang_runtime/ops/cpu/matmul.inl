// y = x Wᵀ + bias with packed weights (types.h), for any number of rows.
//
// Every output is one chain of sums in the order of the inputs, whatever the number of rows and
// wherever its row stands; blocks of rows and columns only share what they load. So a row's bits
// depend on nothing but the row.

// A row is encoded once for each matrix product that reads it.
struct EncodedRows {
    char *data;
    int64_t stride;  // Bytes.
    float *scale;    // int8: what one unit of a row is worth, [rows]
};

struct Float32Format {
    using Total = Vec;
    static Total zero() { return broadcast(0.0f); }
    static Total dot(Total t, Word x, Word w) { return fma(as_floats(x), as_floats(w), t); }
    static Vec finish(Total t, const float *, const Matrix &, int64_t) { return t; }

    static void encode(const float *x, int64_t n, const EncodedRows &to, int64_t row) {
        float *out = reinterpret_cast<float *>(to.data + row * to.stride);
        for_lanes(n, [&](int64_t i, int64_t count) { store(out + i, load_some(x + i, count)); });
    }
};

struct BFloat16Format {
    using Total = Vec;
    static Total zero() { return broadcast(0.0f); }
    static Total dot(Total t, Word x, Word w) { return dot_bf16(t, x, w); }
    static Vec finish(Total t, const float *, const Matrix &, int64_t) { return t; }

    static void encode(const float *x, int64_t n, const EncodedRows &to, int64_t row) {
        char *out = to.data + row * to.stride;
        for_lanes(n, [&](int64_t i, int64_t count) {
            store_bf16(out + 2 * i, load_some(x + i, count));
        });
    }
};

struct Int8Format {
    using Total = Sum;
    static Total zero() { return zero_sum(); }
    static Total dot(Total t, Word x, Word w) { return dot_int8(t, x, w); }
    static Vec finish(Total t, const float *row_scale, const Matrix &m, int64_t column) {
        const Vec sum = to_floats(subtract_offset(t, m.column_sum + column));
        return mul(sum, mul(broadcast(*row_scale), load(m.scale + column)));
    }

    static constexpr float kNothing = 1e-30f;  // Its reciprocal does not overflow.

    // Symmetric: the largest magnitude of the row becomes 127.
    static void encode(const float *x, int64_t n, const EncodedRows &to, int64_t row) {
        Vec largest = broadcast(0.0f);
        for_lanes(n, [&](int64_t i, int64_t count) {
            largest = max(abs(load_some(x + i, count)), largest);
        });
        const float top = largest_lane(largest);
        const Vec inverse = broadcast(top > kNothing ? 127.0f / top : 0.0f);
        const Vec bound = broadcast(127.0f);
        char *out = to.data + row * to.stride;
        for_lanes(n, [&](int64_t i, int64_t count) {
            const Vec unit = nearest(mul(load_some(x + i, count), inverse));
            store_int8(out + i, max(broadcast(-127.0f), min(bound, unit)));
        });
        to.scale[row] = is_finite(x, n) ? top / 127.0f : std::numeric_limits<float>::quiet_NaN();
    }
};

// Call f with the format's type.
template <class Function>
static inline void with_format(int64_t format, Function f) {
    switch (format) {
        case kInt8: return f(Int8Format{});
        case kBFloat16: return f(BFloat16Format{});
        default: return f(Float32Format{});
    }
}

// Where a product goes. Streamed, it goes past the caches, which saves reading what it overwrites;
// its rows are then whole cache lines. Fence before others read it.
struct Output {
    float *data;
    int64_t stride;  // Floats.
    bool streamed;
};

// What a tile fetches into the cache on its way: `first` and `second` in each group of inputs, which
// then move on by `stride` bytes.
struct Ahead {
    const char *first, *second;
    int64_t stride;
};

template <class Format, int Rows, int Vectors>
static inline void multiply_tile(const Matrix &m, const char *panel, int64_t column,
                                 const EncodedRows &x, int64_t row, const Output &out,
                                 Ahead ahead) {
    typename Format::Total total[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) total[r][v] = Format::zero();
    }
    const char *input = x.data + row * x.stride;
    for (int64_t g = 0; g < m.groups; ++g) {
        if (Rows > 1) {
            prefetch(ahead.first);
            prefetch(ahead.second);
            ahead.first += ahead.stride;
            ahead.second += ahead.stride;
        }
        Word weight[Vectors];
        for (int v = 0; v < Vectors; ++v) weight[v] = load_word(panel + 4 * kLanes * v);
        for (int r = 0; r < Rows; ++r) {
            const Word broadcasted = broadcast_word(input + r * x.stride);
            for (int v = 0; v < Vectors; ++v) {
                total[r][v] = Format::dot(total[r][v], broadcasted, weight[v]);
            }
        }
        panel += 4 * kPanelColumns;
        input += 4;
    }
    for (int v = 0; v < Vectors; ++v) {
        const int64_t first = column + kLanes * v, count = m.columns - first;
        if (count <= 0) return;
        const Vec bias = m.bias != nullptr ? load(m.bias + first) : broadcast(0.0f);
        for (int r = 0; r < Rows; ++r) {
            const Vec y = add(Format::finish(total[r][v], x.scale + row + r, m, first), bias);
            float *to = out.data + (row + r) * out.stride + first;
            if (out.streamed) {
                stream(to, y);
            } else {
                store_some(to, count < kLanes ? count : kLanes, y);
            }
        }
    }
}

template <class Format, int Rows>
static inline void multiply_rows(const Matrix &m, const char *panel, int64_t column,
                                 const EncodedRows &x, int64_t row, const Output &out,
                                 const Ahead &ahead) {
    // One row alone leaves registers for several chains, and needs them to hide latency.
    constexpr int vectors = Rows == 1 ? static_cast<int>(kPanelVectors) : kTileVectors;
    for (int v = 0; v < kPanelVectors; v += vectors) {
        multiply_tile<Format, Rows, vectors>(m, panel + 4 * kLanes * v, column + kLanes * v, x, row,
                                             out, ahead);
    }
}

template <class Format, int Rows = kMaxRows>
static inline void multiply_up_to(int64_t rows, const Matrix &m, const char *panel, int64_t column,
                                  const EncodedRows &x, int64_t row, const Output &out,
                                  const Ahead &ahead) {
    if (rows == Rows) {
        multiply_rows<Format, Rows>(m, panel, column, x, row, out, ahead);
    } else if constexpr (Rows > 1) {
        multiply_up_to<Format, Rows - 1>(rows, m, panel, column, x, row, out, ahead);
    }
}

// What a block of rows fetches of the next panel while it computes with this one: so much that all
// blocks together fetch the whole. A single block waits for its own panel as it is.
static inline Ahead look_ahead(const char *next, int64_t groups, int64_t block, int64_t blocks) {
    constexpr int64_t line = 64, lines = 4 * kPanelColumns / line;
    const int64_t per_group = blocks >= lines ? 1 : 2;
    if (blocks == 1 || block >= lines / per_group) return {next, next, 0};
    const char *first = next + block * groups * per_group * line;
    return {first, first + (per_group - 1) * line, per_group * line};
}

// One panel of columns for all rows. The panel stays in the cache from block to block of rows.
template <class Format>
static void multiply_panel(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                           const Output &out) {
    const char *panel = static_cast<const char *>(m.panels) + index * m.groups * 4 * kPanelColumns;
    const char *next = index + 1 < m.num_panels() ? panel + m.groups * 4 * kPanelColumns : panel;
    const int64_t blocks = (rows + kMaxRows - 1) / kMaxRows;
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t row = rows * b / blocks, end = rows * (b + 1) / blocks;
        multiply_up_to<Format>(end - row, m, panel, index * kPanelColumns, x, row, out,
                               look_ahead(next, m.groups, b, blocks));
    }
}

constexpr int64_t kStreamedOutput = 4 << 20;  // Bytes of a product that do not stay in a small cache.
constexpr int64_t kPanelRun = 4;  // Panels that one thread takes at once, to find the next in its cache.

// Memory for rows of n numbers in any format.
static EncodedRows take_rows(Arena &arena, int64_t rows, int64_t n) {
    const int64_t stride = (n + kLanes - 1) / kLanes * kLanes * 4;
    char *data = arena.take<char>(rows * stride);
    return {data, stride, arena.take<float>(rows)};
}

static void multiply(Team &team, Workspace &workspace, const Matrix &m, const float *x,
                     int64_t rows, int64_t in_features, float *out) {
    const EncodedRows encoded =
        workspace.lay_out([&](Arena &a) { return take_rows(a, rows, in_features); });
    const bool lines = reinterpret_cast<uintptr_t>(out) % (sizeof(float) * kLanes) == 0 &&
                       m.columns % kLanes == 0;
    const bool streamed = lines && rows * m.columns * int64_t{sizeof(float)} > kStreamedOutput;
    const Output output{out, m.columns, streamed};
    with_format(m.format, [&](auto format) {
        using Chosen = decltype(format);
        team.for_each(rows, [&](int64_t row, int) {
            Chosen::encode(x + row * in_features, in_features, encoded, row);
        });
        team.for_runs(m.num_panels(), kPanelRun, [&](int64_t panel, int) {
            multiply_panel<Chosen>(m, panel, encoded, rows, output);
            if (streamed) fence();
        });
    });
}

// Products of registers alone, to learn what the processor can do at most.
static void peak(Team &team, int64_t format, int64_t repeats) {
    with_format(format, [&](auto chosen) {
        using Chosen = decltype(chosen);
        team.for_each(team.size(), [&](int64_t, int) {
            alignas(64) char numbers[4 * kPanelColumns] = {};
            char *volatile hidden = numbers;
            typename Chosen::Total total[kMaxRows][kTileVectors];
            for (auto &row : total) {
                for (auto &t : row) t = Chosen::zero();
            }
            const Word x = load_word(hidden), w = load_word(hidden + 4 * kLanes);
            for (int64_t i = 0; i < repeats; ++i) {
                for (auto &row : total) {
                    for (auto &t : row) t = Chosen::dot(t, x, w);
                }
            }
            volatile float result = 0.0f;
            for (auto &row : total) {
                for (auto &t : row) {
                    char bytes[sizeof t];
                    std::memcpy(bytes, &t, sizeof t);
                    result = result + bytes[0];
                }
            }
        });
    });
}
