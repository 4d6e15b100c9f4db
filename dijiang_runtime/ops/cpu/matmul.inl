// A matrix product, its panels shared out among threads.

constexpr int64_t kStreamedOutput = 4 << 20;  // Bytes of a product that do not stay in a small cache.
constexpr int64_t kPanelRun = 4;  // Panels that one thread takes at once, to find the next in its cache.
constexpr int64_t kRowRun = 16;   // Rows: taking one costs as much as a short row does.

static void multiply(Team &team, Workspace &workspace, const Matrix &m, const float *x,
                     int64_t rows, int64_t in_features, float *out) {
    const EncodedRows encoded =
        workspace.lay_out([&](Arena &a) { return take_rows(a, rows, in_features, m.format); });
    const bool lines = reinterpret_cast<uintptr_t>(out) % (sizeof(float) * kLanes) == 0 &&
                       m.columns % kLanes == 0;
    const bool streamed = lines && rows * m.columns * int64_t{sizeof(float)} > kStreamedOutput;
    const Output output{out, m.columns, streamed};
    with_format(m.format, [&](auto format) {
        using Chosen = decltype(format);
        team.for_runs(rows, kRowRun, [&](int64_t row, int) {
            Chosen::encode(x + row * in_features, in_features, encoded, row);
        });
        team.for_runs(m.num_panels(), kPanelRun, [&](int64_t panel, int) {
            multiply_panel<Chosen>(m, panel, encoded, rows, output);
            if (streamed) fence();
        });
    });
}
