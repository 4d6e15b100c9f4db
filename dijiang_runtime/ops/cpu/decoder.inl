// A whole step: every layer of the decoder for the rows of a batch, in one call.
//
// Threads share each phase by rows, by panels of columns or by heads; the next begins when all of it
// is done. No output depends on which thread computed it, and no row on the other rows.

// States of all layers, of so many bytes before and after the step, do not stay in a cache until the
// next one reads them.
constexpr int64_t kStreamedBytes = 8 << 20;

static inline float widened(uint16_t bits, int64_t number) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    if (number == kHalf) {
        const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, rest = bits & 0x3ffu;
        // Subnormal numbers are multiples of 2^-24.
        if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(rest) / (1 << 24);
        wide = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | rest << 13;
    }
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// A token's row of the embedding, in float32.
static void embed(const Decoder &d, int64_t token, float *x) {
    const int64_t n = d.hidden_size;
    if (d.embedding_number == kFull) {
        std::memcpy(x, static_cast<const float *>(d.embedding) + token * n, sizeof(float) * n);
        return;
    }
    const uint16_t *row = static_cast<const uint16_t *>(d.embedding) + token * n;
    for (int64_t i = 0; i < n; ++i) x[i] = widened(row[i], d.embedding_number);
}

// Everything between two matrix products, for all rows.
struct StepMemory {
    EncodedRows input, mlp_input, inner;
    float *q, *k, *v, *gate, *y, *up, *mlp_gate, *attended, *mlp, *angles;
    DecodeFeatures features;
    PerThread<char> scratch;
    PerThread<float> row;  // What a thread makes of one row before it encodes it.

    StepMemory(Arena &a, const Decoder &d, int64_t rows, int64_t num_decodes, int threads)
        : features(a, d, num_decodes) {
        const int64_t widest = d.hidden_size > d.query_size() ? d.hidden_size : d.query_size();
        input = take_rows(a, rows, widest, d.format);
        mlp_input = take_rows(a, rows, d.hidden_size, d.format);
        inner = take_rows(a, rows, d.inner_size, d.format);
        for (float **part : {&q, &gate, &y}) *part = a.take<float>(rows * d.query_size());
        for (float **part : {&k, &v}) *part = a.take<float>(rows * d.value_size());
        for (float **part : {&up, &mlp_gate}) *part = a.take<float>(rows * d.inner_size);
        for (float **part : {&attended, &mlp}) *part = a.take<float>(rows * d.hidden_size);
        angles = a.take<float>(rows * d.rotary_dim);
        scratch = LayerAttention::take_scratch(a, d, threads);
        row = PerThread<float>::take(a, whole_vectors(std::max(widest, d.inner_size)), threads);
    }
};

// Adds to what a phase takes, as long as it lives, where anybody wants to know.
class PhaseClock {
public:
    PhaseClock(const Batch &b, Phase phase) : total_(b.nanoseconds ? b.nanoseconds + phase : nullptr) {
        if (total_) *total_ -= now();
    }
    ~PhaseClock() {
        if (total_) *total_ += now();
    }

private:
    static int64_t now() {
        using std::chrono::nanoseconds, std::chrono::duration_cast;
        const auto time = std::chrono::steady_clock::now().time_since_epoch();
        return duration_cast<nanoseconds>(time).count();
    }

    int64_t *const total_;
};

struct Product {
    const Matrix &matrix;
    const EncodedRows &rows;
    float *out;
};

// A step with matrices of one format.
template <class Format>
class Step {
public:
    Step(Team &team, const Decoder &d, const Batch &b, const StepMemory &memory, bool streamed)
        : team_(team), d_(d), b_(b), m_(memory), streamed_(streamed) {}

    void run() {
        each_row([&](int64_t row, float *made) {
            if (d_.embedding) embed(d_, b_.token_ids[row], x(row));
            float *angles = m_.angles + row * d_.rotary_dim;
            rotary_angles(d_, b_.positions[row], angles, angles + d_.rotary_dim / 2);
            enter(d_.layers[0], row, made);
        });
        for (int64_t i = 0; i < d_.num_layers; ++i) {
            const Layer &layer = d_.layers[i];
            d_.parallel_residual ? run_parallel(layer) : run_sequential(layer);
            // The end of one layer and the beginning of the next need no wait between them.
            each_row([&](int64_t row, float *made) {
                leave(layer, row);
                i + 1 < d_.num_layers ? enter(d_.layers[i + 1], row, made) : finish(row);
            });
        }
    }

private:
    // Call f with each row and with memory for one, which stays in the cache of the thread.
    template <class Function>
    void each_row(Function f) {
        const PhaseClock clock(b_, kRows);
        team_.for_runs(b_.num_rows, kRowRun, [&](int64_t row, int member) {
            f(row, m_.row.of(member));
        });
    }

    template <int Count>
    void multiply_all(const Product (&products)[Count]) {
        const PhaseClock clock(b_, kProducts);
        int64_t panels = 0;
        for (const Product &p : products) panels += p.matrix.panels ? p.matrix.num_panels() : 0;
        team_.for_runs(panels, kPanelRun, [&](int64_t panel, int) {
            for (const Product &p : products) {
                const int64_t count = p.matrix.panels ? p.matrix.num_panels() : 0;
                if (panel < count) {
                    multiply_panel<Format>(p.matrix, panel, p.rows, b_.num_rows,
                                           {p.out, p.matrix.columns});
                    return;
                }
                panel -= count;
            }
        });
    }

    float *x(int64_t row) { return b_.x + row * d_.hidden_size; }

    void norm_and_encode(const NormWeights &w, int64_t row, const EncodedRows &to, float *made) {
        normalise(x(row), d_.hidden_size, d_.norm, d_.norm_eps, w, made);
        Format::encode(made, d_.hidden_size, to, row);
    }

    void add_to_residual(const float *part, int64_t row) {
        for_lanes(d_.hidden_size, [&](int64_t i, int64_t n) {
            const Vec more = load_some(part + row * d_.hidden_size + i, n);
            store_some(x(row) + i, n, add(load_some(x(row) + i, n), more));
        });
    }

    void enter(const Layer &layer, int64_t row, float *made) {
        if (d_.norm_first) {
            norm_and_encode(layer.attention_norm, row, m_.input, made);
        } else {
            Format::encode(x(row), d_.hidden_size, m_.input, row);
        }
        if (d_.parallel_residual) norm_and_encode(layer.mlp_norm, row, m_.mlp_input, made);
    }

    void run_parallel(const Layer &layer) {
        multiply_all<6>({{layer.q, m_.input, m_.q},
                         {layer.k, m_.input, m_.k},
                         {layer.v, m_.input, m_.v},
                         {layer.gate, m_.input, m_.gate},
                         {layer.up, m_.mlp_input, m_.up},
                         {layer.mlp_gate, m_.mlp_input, m_.mlp_gate}});
        attend(layer);
        each_row([&](int64_t row, float *made) {
            gate_read_out(layer, row, made);
            activate_inner(layer, row, made);
        });
        multiply_all<2>({{layer.o, m_.input, m_.attended}, {layer.down, m_.inner, m_.mlp}});
    }

    void run_sequential(const Layer &layer) {
        multiply_all<4>({{layer.q, m_.input, m_.q},
                         {layer.k, m_.input, m_.k},
                         {layer.v, m_.input, m_.v},
                         {layer.gate, m_.input, m_.gate}});
        attend(layer);
        each_row([&](int64_t row, float *made) { gate_read_out(layer, row, made); });
        multiply_all<1>({{layer.o, m_.input, m_.attended}});
        each_row([&](int64_t row, float *made) {
            add_to_residual(m_.attended, row);
            if (d_.norm_first) {
                norm_and_encode(layer.mlp_norm, row, m_.mlp_input, made);
            } else {
                normalise(x(row), d_.hidden_size, d_.norm, d_.norm_eps, layer.attention_norm, x(row));
                Format::encode(x(row), d_.hidden_size, m_.mlp_input, row);
            }
        });
        multiply_all<2>({{layer.up, m_.mlp_input, m_.up}, {layer.mlp_gate, m_.mlp_input, m_.mlp_gate}});
        each_row([&](int64_t row, float *made) { activate_inner(layer, row, made); });
        multiply_all<1>({{layer.down, m_.inner, m_.mlp}});
    }

    void attend(const Layer &layer) {
        const PhaseClock clock(b_, kAttention);
        const Projected p{m_.q, m_.k, m_.v, b_.positions, m_.angles, m_.y, b_.finite};
        LayerAttention(d_, b_, layer, p, m_.features, streamed_).run(team_, m_.scratch);
    }

    void gate_read_out(const Layer &layer, int64_t row, float *made) {
        const float *y = m_.y + row * d_.query_size();
        if (layer.readout_norm.weight) {
            normalise_groups(y, d_.query_size(), d_.num_groups, d_.group_eps, layer.readout_norm, made);
            y = made;
        }
        if (layer.gate.panels) {
            const float *gate = m_.gate + row * d_.query_size();
            for_lanes(d_.query_size(), [&](int64_t i, int64_t n) {
                store_some(made + i, n, mul(silu(load_some(gate + i, n)), load_some(y + i, n)));
            });
            y = made;
        }
        Format::encode(y, d_.query_size(), m_.input, row);
    }

    void activate_inner(const Layer &layer, int64_t row, float *made) {
        const float *up = m_.up + row * d_.inner_size;
        const float *gate = layer.mlp_gate.panels ? m_.mlp_gate + row * d_.inner_size : nullptr;
        for_lanes(d_.inner_size, [&](int64_t i, int64_t n) {
            const Vec u = load_some(up + i, n);
            const Vec activated = activate(gate ? load_some(gate + i, n) : u, d_.activation);
            store_some(made + i, n, gate ? mul(activated, u) : activated);
        });
        Format::encode(made, d_.inner_size, m_.inner, row);
    }

    void leave(const Layer &layer, int64_t row) {
        add_to_residual(m_.mlp, row);
        if (d_.parallel_residual) add_to_residual(m_.attended, row);
        if (!d_.norm_first) {
            normalise(x(row), d_.hidden_size, d_.norm, d_.norm_eps, layer.mlp_norm, x(row));
        }
    }

    void finish(int64_t row) {
        if (d_.final_norm.weight) {
            normalise(x(row), d_.hidden_size, d_.norm, d_.norm_eps, d_.final_norm, x(row));
        }
        if (!is_finite(x(row), d_.hidden_size)) b_.finite[row] = 0;
    }

    Team &team_;
    const Decoder &d_;
    const Batch &b_;
    const StepMemory &m_;
    const bool streamed_;
};

static void forward(Team &team, Workspace &workspace, const Decoder &d, const Batch &b) {
    const int64_t numbers = d.num_layers * d.num_kv_heads * d.num_features * d.value_dim;
    const bool streamed = 2 * b.num_decodes * numbers * int64_t{sizeof(float)} > kStreamedBytes;
    const StepMemory memory = workspace.lay_out(
        [&](Arena &a) { return StepMemory(a, d, b.num_rows, b.num_decodes, team.size()); });
    with_format(d.format, [&](auto format) {
        Step<decltype(format)>(team, d, b, memory, streamed).run();
    });
}
