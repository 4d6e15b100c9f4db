// A matrix product, its panels shared out among threads.

constexpr int64_t kStreamedOutput = 4 << 20;  // Bytes of a product that do not stay in a small cache.
constexpr int64_t kPanelRun = 4;  // Panels that one thread takes at once, to find the next in its cache.
constexpr int64_t kRowRun = 16;   // Rows: taking one costs as much as a short row does.

// What is found on the way, where anybody wants to know.
struct Likeliest {
    Panels panels;
    uint8_t *finite;  // [rows]
    int64_t *token;   // [rows]
};

// Of all rows of x, or where `chosen` is not null of those.
static void multiply_rows_of(Team &team, Workspace &workspace, const Matrix &m, const float *x,
                             const int64_t *chosen, int64_t rows, int64_t in_features, float *out,
                             const Likeliest &likeliest) {
    const int64_t num_panels = m.num_panels();
    const EncodedRows encoded =
        workspace.lay_out([&](Arena &a) { return take_rows(a, rows, in_features, m.format); });
    const bool lines = reinterpret_cast<uintptr_t>(out) % (sizeof(float) * kLanes) == 0 &&
                       m.columns % kLanes == 0;
    const bool streamed = lines && rows * m.columns * int64_t{sizeof(float)} > kStreamedOutput;
    const Output output{out, m.columns, streamed, likeliest.panels, num_panels};
    with_format(m.format, [&](auto format) {
        using Chosen = decltype(format);
        team.for_runs(rows, kRowRun, [&](int64_t row, int) {
            Chosen::encode(x + (chosen ? chosen[row] : row) * in_features, in_features, encoded, row);
        });
        team.for_runs(num_panels, kPanelRun, [&](int64_t panel, int) {
            multiply_panel<Chosen>(m, panel, encoded, rows, output);
            if (streamed) fence();
        });
    });
    if (!likeliest.panels.largest) return;
    team.for_runs(rows, kRowRun, [&](int64_t row, int) {
        likeliest.finite[row] = !has_nan(likeliest.panels.largest + row * num_panels, num_panels);
        likeliest.token[row] = likeliest_of(read_row(out, m.columns, likeliest.panels, row, nullptr));
    });
}

static void multiply(Team &team, Workspace &workspace, const Matrix &m, const float *x,
                     int64_t rows, int64_t in_features, float *out) {
    multiply_rows_of(team, workspace, m, x, nullptr, rows, in_features, out, {});
}

// The logits of some rows of x and, found on the way, the likeliest token of each.
static void logits(Team &team, Workspace &workspace, const Matrix &m, const float *x,
                   const int64_t *chosen, int64_t rows, int64_t in_features, float *out,
                   const Panels &panels, uint8_t *finite, int64_t *likeliest) {
    multiply_rows_of(team, workspace, m, x, chosen, rows, in_features, out,
                     {panels, finite, likeliest});
}
