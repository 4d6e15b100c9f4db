// y = x Wᵀ + bias with packed weights (types.h), one panel of columns for any number of rows.
//
// Every output is one chain of sums in the order of the inputs, whatever the number of rows and
// wherever its row stands; blocks of rows and columns only share what they load. So a row's bits
// depend on nothing but the row.

// Where a product goes. Streamed, it goes past the caches, which saves reading what it overwrites;
// its rows are then whole cache lines. Fence before others read it.
struct Output {
    float *data;
    int64_t stride;  // Floats.
    bool streamed = false;
    Panels panels{};  // What is found out about the outputs on the way, if anything.
    int64_t num_panels = 0;
};

// Up to 16 columns of a row, from the given one on.
static inline void store_output(Vec y, const Output &out, int64_t row, int64_t column, int64_t columns) {
    float *to = out.data + row * out.stride + column;
    if (out.streamed) {
        stream(to, y);
    } else {
        store_some(to, std::min(columns - column, kLanes), y);
    }
}

// Look at the outputs of a row in one panel, from the given column on, of which the first `count` are
// there: the largest of those that may come, NaN where any is not finite, and their mass where a
// temperature is given.
static inline void look_at_panel(const Vec (&y)[kPanelVectors], int64_t count, const Output &out,
                                 int64_t row, int64_t column) {
    Vec outputs[kPanelVectors], largest = broadcast(kNone), spoilt = broadcast(0.0f);
    const uint32_t *mask = out.panels.mask(row);
    for (int64_t v = 0; v < kPanelVectors; ++v) {
        const int64_t left = count - kLanes * v;
        outputs[v] = left > 0 ? y[v] : broadcast(kNone);
        if (left <= 0) continue;
        if (left < kLanes) {
            alignas(64) float all[kLanes];
            store(all, y[v]);
            outputs[v] = load_first(all, left, kNone);
            spoilt = fma(load_first(all, left), broadcast(0.0f), spoilt);
        } else {
            spoilt = fma(y[v], broadcast(0.0f), spoilt);
        }
        if (mask) outputs[v] = choose(bits_from(mask, column + kLanes * v), outputs[v], broadcast(kNone));
        largest = max(outputs[v], largest);
    }
    const int64_t place = row * out.num_panels + column / kPanelColumns;
    const bool is_finite = reaching(spoilt, spoilt) == (1u << kLanes) - 1u;
    const float top = is_finite ? largest_lane(largest) : std::numeric_limits<float>::quiet_NaN();
    out.panels.largest[place] = top;
    const float temperature = out.panels.temperature ? out.panels.temperature[row] : 0.0f;
    if (temperature <= 0.0f) return;
    const Weights weights(top, temperature);
    Vec mass = broadcast(0.0f);
    for (const Vec &some : outputs) mass = add(mass, weights.of(some));
    out.panels.mass[place] = top == kNone ? 0.0f : sum_lanes(mass);
}

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
    Vec outputs[Rows][kPanelVectors];
    for (int v = 0; v < Vectors; ++v) {
        const int64_t first = column + kLanes * v;
        if (m.columns <= first) break;
        const typename Format::Columns columns(m, first);
        for (int r = 0; r < Rows; ++r) {
            outputs[r][v] = columns.finish(total[r][v], x.scale[row + r]);
            store_output(outputs[r][v], out, row + r, first, m.columns);
        }
    }
    constexpr int64_t width = kLanes * Vectors;
    if (out.panels.largest == nullptr || (column + width) % kPanelColumns != 0) return;
    const int64_t start = column + width - kPanelColumns, count = m.columns - start;
    for (int r = 0; r < Rows; ++r) {
        // What other tiles have made of the panel is read again.
        const float *made = out.data + (row + r) * out.stride + start;
        for (int64_t v = 0; Vectors < kPanelVectors && v < kPanelVectors && kLanes * v < count; ++v) {
            outputs[r][v] = load_some(made + kLanes * v, std::min(count - kLanes * v, kLanes));
        }
        look_at_panel(outputs[r], count, out, row + r, start);
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
static void multiply_panel_in_vectors(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
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

template <class Format>
static void multiply_panel(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                           const Output &out) {
    multiply_panel_in_vectors<Format>(m, index, x, rows, out);
}
