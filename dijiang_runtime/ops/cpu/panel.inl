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
    float *largest = nullptr;  // Of each row in each panel, NaN where one is not finite: [rows][panels]
    int64_t num_panels = 0;

    float *largest_at(int64_t row, int64_t column) const {
        return largest + row * num_panels + column / kPanelColumns;
    }
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

// The largest of some outputs of a row.
class LargestOutput {
public:
    // Written out: a constructor that the compiler makes up is compiled for no target.
    LargestOutput() : largest_(broadcast(kNone)), spoilt_(broadcast(0.0f)) {}

    void add_columns(Vec y, int64_t count) {
        if (count < kLanes) {
            alignas(64) float all[kLanes];
            store(all, y);
            y = load_first(all, count, all[0]);
        }
        largest_ = max(y, largest_);
        spoilt_ = fma(y, broadcast(0.0f), spoilt_);
    }

    // Into `to`, where the largest before is unless these are the first.
    void write(float *to, bool first) const {
        constexpr uint32_t all = (1u << kLanes) - 1u;
        float found = largest_lane(largest_);
        if (!first) found = *to <= found ? found : *to;
        *to = reaching(spoilt_, spoilt_) == all ? found : std::numeric_limits<float>::quiet_NaN();
    }

private:
    Vec largest_, spoilt_;  // `spoilt_` is NaN once a number is not finite.
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
    LargestOutput largest[Rows];
    for (int v = 0; v < Vectors; ++v) {
        const int64_t first = column + kLanes * v;
        if (m.columns <= first) break;
        const typename Format::Columns columns(m, first);
        for (int r = 0; r < Rows; ++r) {
            const Vec y = columns.finish(total[r][v], x.scale[row + r]);
            store_output(y, out, row + r, first, m.columns);
            if (out.largest) largest[r].add_columns(y, m.columns - first);
        }
    }
    if (out.largest == nullptr || m.columns <= column) return;
    for (int r = 0; r < Rows; ++r) {
        largest[r].write(out.largest_at(row + r, column), column % kPanelColumns == 0);
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
