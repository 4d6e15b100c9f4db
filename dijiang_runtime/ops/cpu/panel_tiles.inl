// The same in the tiles of a matrix unit (AMX), for int8 and bfloat16: `tiles_*.h`.
//
// A tile has 16 rows of 64 bytes. Of the input those are rows; of a panel they are groups of inputs
// for 16 columns, which is how it is stored; of the product, rows of 16 columns. Rows beyond the last
// are computed from whatever lies there and left out. int8 sums are exact, so they are those of any
// other target; bfloat16 sums have an order of their own, in which every number of rows is added.

constexpr int64_t kGroupBytes = 4 * kPanelColumns;   // Of one group of a panel.
constexpr int64_t kStepGroups = 16;                  // Groups of a panel that are multiplied at once,
constexpr int64_t kStepBytes = kStepGroups * kGroupBytes;  // their bytes,
constexpr int64_t kStepInput = 4 * kStepGroups;            // and those of a row.
constexpr int64_t kFewRows = 4;  // int8: so many wait for the panel alone, and vectors read it faster.

// What a panel is multiplied with. The last step of a panel may have fewer groups: then it is read
// from a copy that is filled up with zeros.
struct PanelSteps {
    const char *panel, *last;
    int64_t count;

    const char *at(int64_t step) const { return step + 1 < count ? panel + step * kStepBytes : last; }
};

// Where some rows of a product are put together: all columns of a panel, [rows][64].
struct alignas(64) PanelSums {
    int32_t sums[2 * kRowMultiple][kPanelColumns];
};

template <class Format, int Sums, int X, int Weight>
static inline void tile_dot() {
    if constexpr (std::is_same_v<Format, Int8Format>) {
        tile_dot_int8<Sums, X, Weight>();
    } else {
        tile_dot_bf16<Sums, X, Weight>();
    }
}

// Makes outputs of the sums of some rows, a few at a time: meanwhile the matrix unit works.
template <class Format>
class PanelOutput {
public:
    PanelOutput(const Matrix &m, int64_t column, const float *scale, const Output &out)
        : columns_{{m, column}, {m, column + kLanes}, {m, column + 2 * kLanes}, {m, column + 3 * kLanes}},
          scale_(scale),
          column_(column),
          num_columns_(m.columns),
          out_(out) {}

    // What is to be written next.
    void begin(const PanelSums &from, int64_t row, int64_t rows) {
        sums_ = &from.sums[0][0];
        row_ = row;
        end_ = row + rows;
    }

    void write(int64_t rows) {
        for (const int64_t end = std::min(row_ + rows, end_); row_ < end; ++row_, sums_ += kPanelColumns) {
            const float scale = scale_[row_];
            Vec outputs[kPanelVectors];
            for (int64_t v = 0; v < kPanelVectors && column_ + kLanes * v < num_columns_; ++v) {
                typename Format::Total total;
                std::memcpy(&total, sums_ + kLanes * v, sizeof total);
                outputs[v] = columns_[v].finish(total, scale);
                store_output(outputs[v], out_, row_, column_ + kLanes * v, num_columns_);
            }
            if (out_.panels.largest) {
                look_at_panel(outputs, num_columns_ - column_, out_, row_, column_);
            }
        }
    }

    void write_rest() { write(end_ - row_); }

private:
    const typename Format::Columns columns_[kPanelVectors];
    const float *const scale_;
    const int64_t column_, num_columns_;
    const Output out_;
    const int32_t *sums_ = nullptr;
    int64_t row_ = 0, end_ = 0;
};

// Fetches a part of the next panel in each step.
struct PanelAhead {
    const char *next;
    int64_t lines_in_step;

    void fetch() {
        for (int64_t i = 0; i < lines_in_step; ++i, next += kLine) prefetch(next);
    }
};

// 16 rows and all columns of a panel.
template <class Format>
static inline void multiply_16(const PanelSteps &w, const EncodedRows &x, int64_t row,
                               PanelSums &out, PanelOutput<Format> &last) {
    const int64_t rows_at_once = 1 + 2 * kRowMultiple / w.count;
    const char *input = x.data + row * x.stride;
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    for (int64_t step = 0; step < w.count; ++step, input += kStepInput) {
        const char *weight = w.at(step);
        tile_load<4>(input, x.stride);
        tile_load<5>(weight, kGroupBytes);
        tile_dot<Format, 0, 4, 5>();
        tile_load<6>(weight + kLine, kGroupBytes);
        tile_dot<Format, 1, 4, 6>();
        tile_load<7>(weight + 2 * kLine, kGroupBytes);
        tile_dot<Format, 2, 4, 7>();
        tile_load<5>(weight + 3 * kLine, kGroupBytes);
        tile_dot<Format, 3, 4, 5>();
        last.write(rows_at_once);
    }
    tile_store<0>(&out.sums[0][0], kGroupBytes);
    tile_store<1>(&out.sums[0][kLanes], kGroupBytes);
    tile_store<2>(&out.sums[0][2 * kLanes], kGroupBytes);
    tile_store<3>(&out.sums[0][3 * kLanes], kGroupBytes);
}

// 32 rows and the half of a panel's columns that begins with the given one.
template <class Format>
static inline void multiply_32(const PanelSteps &w, int64_t column, const EncodedRows &x, int64_t row,
                               PanelAhead ahead, PanelSums &out, PanelOutput<Format> &last) {
    const int64_t rows_at_once = 1 + kRowMultiple / w.count;
    const char *first = x.data + row * x.stride, *second = first + kRowMultiple * x.stride;
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    for (int64_t step = 0; step < w.count; ++step, first += kStepInput, second += kStepInput) {
        const char *weight = w.at(step) + 4 * column;
        ahead.fetch();
        tile_load<4>(first, x.stride);
        tile_load<6>(weight, kGroupBytes);
        tile_dot<Format, 0, 4, 6>();
        tile_load<7>(weight + kLine, kGroupBytes);
        tile_dot<Format, 1, 4, 7>();
        tile_load<5>(second, x.stride);
        tile_dot<Format, 2, 5, 6>();
        tile_dot<Format, 3, 5, 7>();
        last.write(rows_at_once);
    }
    tile_store<0>(&out.sums[0][column], kGroupBytes);
    tile_store<1>(&out.sums[0][column + kLanes], kGroupBytes);
    tile_store<2>(&out.sums[kRowMultiple][column], kGroupBytes);
    tile_store<3>(&out.sums[kRowMultiple][column + kLanes], kGroupBytes);
}

template <class Format>
static void multiply_panel_in_tiles(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                                    const Output &out) {
    const TilesInUse in_use;
    const char *panel = static_cast<const char *>(m.panels) + index * m.groups * kGroupBytes;
    alignas(64) char last[kStepBytes];
    PanelSteps w{panel, nullptr, (m.groups + kStepGroups - 1) / kStepGroups};
    w.last = panel + (w.count - 1) * kStepBytes;
    if (const int64_t rest = m.groups % kStepGroups) {
        std::memcpy(last, w.last, rest * kGroupBytes);
        std::memset(last + rest * kGroupBytes, 0, (kStepGroups - rest) * kGroupBytes);
        w.last = last;
        // The compiler does not know that a tile's instructions read memory.
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    PanelSums sums[2];  // Of one block of rows while those of the last are written.
    PanelOutput<Format> output(m, index * kPanelColumns, x.scale, out);
    constexpr int64_t block = 2 * kRowMultiple;
    // All blocks together fetch the whole of the next panel. A single one waits for its own as it is.
    const int64_t halves = rows / block * 2;
    const int64_t lines = halves > 2 ? (kStepBytes / kLine + halves - 1) / halves : 0;
    PanelAhead ahead{panel + m.groups * kGroupBytes, lines};
    for (int64_t row = 0; row < rows; row += block) {
        const int64_t count = std::min(rows - row, block);
        PanelSums &next = sums[row / block % 2];
        if (count <= kRowMultiple) {
            multiply_16(w, x, row, next, output);
        } else {
            for (const int64_t column : {int64_t{0}, kPanelColumns / 2}) {
                multiply_32(w, column, x, row, ahead, next, output);
                ahead.next += lines * kLine * w.count;
            }
        }
        output.write_rest();
        output.begin(next, row, count);
    }
    output.write_rest();
}

template <>
void multiply_panel<BFloat16Format>(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                                    const Output &out) {
    multiply_panel_in_tiles<BFloat16Format>(m, index, x, rows, out);
}

template <>
void multiply_panel<Int8Format>(const Matrix &m, int64_t index, const EncodedRows &x, int64_t rows,
                                const Output &out) {
    const bool is_few = rows <= kFewRows;
    (is_few ? multiply_panel_in_vectors<Int8Format> : multiply_panel_in_tiles<Int8Format>)(m, index, x,
                                                                                         rows, out);
}
