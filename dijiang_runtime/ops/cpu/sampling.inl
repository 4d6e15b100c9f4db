// Rows of logits to tokens and logprobs. A row is worked on by one thread and added up in one fixed
// order, so what comes out depends neither on its neighbours nor on the number of threads.

// What one thread works with.
struct SamplingMemory {
    float *block_largest, *spare_floats;
    double *block_masses;
    Candidate *candidates, *spare;

    // For rows of n logits and so many threads, of which this is the first's.
    static SamplingMemory take(Arena &arena, int64_t n, int64_t threads) {
        const int64_t blocks = blocks_of(n) * threads, rows = (n + 1) * threads;
        return {arena.take<float>(blocks), arena.take<float>(blocks), arena.take<double>(blocks),
                arena.take<Candidate>(rows), arena.take<Candidate>(rows)};
    }

    SamplingMemory of(int64_t thread, int64_t n) const {
        const int64_t blocks = blocks_of(n) * thread, rows = (n + 1) * thread;
        return {block_largest + blocks, spare_floats + blocks, block_masses + blocks,
                candidates + rows, spare + rows};
    }
};

// Draw from the whole vocabulary.
static int64_t draw_whole(const LogitRow &row, float temperature, double uniform, double *masses) {
    const double point = point_of(uniform, mass_of_row(row, temperature, masses));
    double mass = 0.0;
    int64_t b = 0, last = -1;
    while (b < row.num_blocks() - 1 && mass + masses[b] <= point) mass += masses[b++];
    const float largest = row.block_largest[b];
    const Weights of_row(row.largest, temperature), of_block(largest, temperature);
    const double share = largest_lane(of_row.of(broadcast(largest)));
    // The block's own numbers, one by one, may add up to a little less than their sum by lanes.
    alignas(64) float weight[kLanes];
    for (int64_t i = b * kBlock; i < row.block_end(b); ++i) {
        const int64_t lane = (i - b * kBlock) % kLanes;
        if (lane == 0) {
            const int64_t count = std::min(row.block_end(b) - i, kLanes);
            store(weight, of_block.of(row.logits_from(i, count)));
        }
        mass += share * weight[lane];
        if (weight[lane] > 0.0f) last = i;
        if (mass > point) return i;
    }
    return last;
}

// The tokens of which the nucleus is made at most: ever more of the likeliest, until they have mass
// enough. Where many are about equally likely, small steps lead nowhere.
static int64_t gather_share(const LogitRow &row, float temperature, double share, Candidate *found) {
    int64_t n = 0;
    for (float least = 1.0f / 64; least > 1e-30f; least /= n > row.n / 16 ? 1024 : 4) {
        n = gather(row, row.largest + temperature * std::log(least), found);
        weigh(found, n, row.largest, temperature);
        if (n == row.n || mass_of(found, n) >= share) return n;
    }
    n = gather(row, kNone, found);
    weigh(found, n, row.largest, temperature);
    return n;
}

static int64_t draw_token(const LogitRow &row, const Draw &d, const SamplingMemory &memory) {
    if (row.largest == kNone) return 0;  // None may come.
    Candidate *c = memory.candidates;
    const float temperature = static_cast<float>(d.temperature), min_p = static_cast<float>(d.min_p);
    const bool has_top_k = 0 < d.top_k && d.top_k < row.n;
    int64_t n;
    double mass;
    if (has_top_k || d.min_p > 0.0) {
        if (has_top_k) {
            n = gather_top(row, d.top_k, c, memory.spare_floats);
            sort_by_id(c, n);
        } else {
            // A little more than will be left, whatever is rounded.
            n = gather(row, row.largest + temperature * (std::log(min_p) - 1e-3f), c);
        }
        weigh(c, n, row.largest, temperature);
        n = drop_lighter(c, n, min_p);
        mass = mass_of(c, n);
    } else if (d.top_p < 1.0) {
        mass = mass_of_row(row, temperature, memory.block_masses);
        n = gather_share(row, temperature, d.top_p * mass, c);
    } else {
        return draw_whole(row, temperature, d.uniform, memory.block_masses);
    }
    // top_p is a share of what min_p and top_k leave.
    if (d.top_p < 1.0) {
        n = cut_nucleus(c, n, d.top_p * mass, row.largest, temperature, memory.spare);
    }
    return draw_among(c, n, d.uniform);
}

template <class Function>
static void for_rows(Team &team, Workspace &workspace, int64_t rows, int64_t n, Function f) {
    const SamplingMemory memory = workspace.lay_out(
        [&](Arena &arena) { return SamplingMemory::take(arena, n, team.size()); });
    team.for_each(rows, [&](int64_t row, int member) { f(row, memory.of(member, n)); });
}

static void draw(Team &team, Workspace &workspace, const float *logits, const Panels &panels, int64_t n,
                 const Draw *draws, int64_t num_draws, int64_t *tokens) {
    for_rows(team, workspace, num_draws, n, [&](int64_t i, const SamplingMemory &memory) {
        tokens[i] = draw_token(read_row(logits, n, panels, draws[i].row, memory.block_largest), draws[i],
                               memory);
    });
}

static void logprobs(Team &team, Workspace &workspace, const LogprobQuery &q) {
    for_rows(team, workspace, q.num_rows, q.vocab_size, [&](int64_t i, const SamplingMemory &memory) {
        const float *x = q.logits + q.rows[i] * q.vocab_size;
        const LogitRow row =
            read_whole_row(q.logits, q.vocab_size, *q.panels, q.rows[i], memory.block_largest);
        const double log_sum = row.largest + std::log(mass_of_row(row, 1.0f, memory.block_masses));
        q.chosen[i] = static_cast<float>(x[q.tokens[i]] - log_sum);
        if (q.num_top == 0) return;
        Candidate *c = memory.candidates;
        gather_top(row, q.num_top, c, memory.spare_floats);
        sort_by_likelihood(c, q.num_top);
        for (int64_t j = 0; j < q.num_top; ++j) {
            q.top_ids[i * q.num_top + j] = c[j].id;
            q.top[i * q.num_top + j] = static_cast<float>(c[j].logit - log_sum);
        }
    });
}

// Whether all numbers are finite, and the place of the largest, the first among equals.
static void scan_row(const float *x, int64_t n, uint8_t *finite, int64_t *likeliest) {
    Vec spoilt = broadcast(0.0f);  // NaN once a number is not finite.
    Vec largest = broadcast(kNone);
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec some = load_some(x + i, count, x[0]);
        spoilt = fma(some, broadcast(0.0f), spoilt);
        largest = max(some, largest);
    });
    *finite = sum_lanes(spoilt) == 0.0f;
    *likeliest = first_reaching(x, n, largest_lane(largest));
}

static void scan_rows(Team &team, const float *x, int64_t num_rows, int64_t n, uint8_t *finite,
                      int64_t *likeliest) {
    team.for_each(num_rows, [&](int64_t i, int) {
        scan_row(x + i * n, n, finite + i, likeliest + i);
    });
}
