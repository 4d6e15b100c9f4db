// What is changed of rows of logits before tokens are chosen: biases and penalties.

static void penalise(float *x, const Penalties &p) {
    for (int64_t i = 0; i < p.num_tokens; ++i) {
        float &logit = x[p.tokens[i]];
        logit = logit > 0.0f ? logit / p.repetition : logit * p.repetition;
        logit -= p.frequency * p.counts[i] + (p.counts[i] > 0.0f ? p.presence : 0.0f);
        logit = logit > p.least ? logit : p.least;
    }
}

// What of a row is about to be changed, here and there: fetched all at once.
static void fetch_blocks(const float *x, const int64_t *tokens, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float *block = x + tokens[i] / kBlock * kBlock;
        for (int64_t v = 0; v < kPanelVectors; ++v) prefetch(block + v * kLanes);
    }
}

// Find out again what is known of the blocks of a row in which tokens have changed.
static void look_again(const LogitRow &row, const int64_t *tokens, int64_t count, float *largest,
                       float *mass) {
    for (int64_t i = 0, last = -1; i < count; ++i) {
        const int64_t b = tokens[i] / kBlock;
        if (b == last) continue;
        last = b;
        const float top = largest[b] = largest_of_block(row, b);
        if (!row.block_mass) continue;
        mass[b] = top == kNone ? 0.0f : mass_of_block(row, b, {top, row.mass_temperature});
    }
}

static void adjust_row(float *x, const Adjustment &a) {
    const Penalties &p = a.penalties;
    fetch_blocks(x, a.biased, a.num_biased);
    fetch_blocks(x, p.tokens, p.num_tokens);
    for (int64_t i = 0; i < a.num_biased; ++i) x[a.biased[i]] += a.bias[i];
    for (int64_t i = 0; i < a.num_suppressed; ++i) x[a.suppressed[i]] = p.least;
    penalise(x, p);
}

// What is known of the rows is kept up to date.
static void adjust(Team &team, Workspace &workspace, float *logits, const Panels &panels, int64_t n,
                   const Adjustment *adjustments, int64_t count, int64_t *likeliest) {
    const int64_t blocks = blocks_of(n);
    float *const memory =
        workspace.lay_out([&](Arena &a) { return a.take<float>(blocks * team.size()); });
    team.for_each(count, [&](int64_t i, int member) {
        const Adjustment &a = adjustments[i];
        float *own = memory + member * blocks;
        adjust_row(logits + a.row * n, a);
        if (panels.largest) {
            const LogitRow row = read_row(logits, n, panels, a.row, own);
            float *largest = panels.largest + a.row * blocks, *mass = panels.mass + a.row * blocks;
            look_again(row, a.biased, a.num_biased, largest, mass);
            look_again(row, a.suppressed, a.num_suppressed, largest, mass);
            look_again(row, a.penalties.tokens, a.penalties.num_tokens, largest, mass);
        }
        likeliest[i] = likeliest_of(read_row(logits, n, panels, a.row, own));
    });
}
