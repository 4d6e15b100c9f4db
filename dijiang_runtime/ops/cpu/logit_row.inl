// A row of logits, in blocks of which the largest are known, and what is found in it by them.

// Logits that are looked at together, or skipped together: those of a panel, whose largest is known
// where the logits were made here.
constexpr int64_t kBlock = kPanelColumns;

static inline int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// A row of logits, and what is known of each block of it. Where the largest is -infinity nothing in
// the block may be drawn, whatever is in it.
struct LogitRow {
    const float *x;
    int64_t n;
    const float *block_largest;
    const float *block_mass;  // Null where it is not known;
    float mass_temperature;   // at which it is.
    float largest;

    int64_t num_blocks() const { return blocks_of(n); }
    int64_t block_end(int64_t b) const { return (b + 1) * kBlock < n ? (b + 1) * kBlock : n; }
    bool is_empty(int64_t b) const { return block_largest[b] == kNone; }
};

static inline float largest_of_block(const float *x, int64_t n, int64_t b) {
    const int64_t start = b * kBlock;
    return largest_of(x + start, std::min(n - start, kBlock));
}

// A row of some of which the panels are known.
static LogitRow read_row(const float *x, int64_t n, const Panels &known, int64_t r, float *memory) {
    const int64_t blocks = blocks_of(n);
    const float temperature = known.temperature ? known.temperature[r] : 0.0f;
    LogitRow row{x + r * n, n, memory, nullptr, temperature, kNone};
    if (known.largest) row.block_largest = known.largest + r * blocks;
    if (known.largest && temperature > 0.0f) row.block_mass = known.mass + r * blocks;
    for (int64_t b = 0; b < blocks && !known.largest; ++b) {
        memory[b] = largest_of_block(row.x, n, b);
    }
    row.largest = largest_of(row.block_largest, blocks);
    return row;
}

// The sum of a block's weights, where its largest logit weighs 1.
static inline float mass_of_block(const float *x, int64_t n, int64_t b, const Weights &weights) {
    const int64_t start = b * kBlock;
    Vec total = broadcast(0.0f);
    for_lanes(std::min(n - start, kBlock), [&](int64_t i, int64_t count) {
        total = add(total, weights.of(load_some(x + start + i, count, kNone)));
    });
    return sum_lanes(total);
}

// What the row's largest logits weigh, block by block; the likeliest of all weighs 1.
static double mass_of_row(const LogitRow &row, float temperature, double *block_masses) {
    const bool is_known = row.block_mass && row.mass_temperature == temperature;
    const Weights of_largest(row.largest, temperature);
    double mass = 0.0;
    for_lanes(row.num_blocks(), [&](int64_t first, int64_t count) {
        alignas(64) float share[kLanes];
        store(share, of_largest.of(load_some(row.block_largest + first, count, kNone)));
        for (int64_t b = first; b < first + count; ++b) {
            double own = is_known ? row.block_mass[b] : 0.0;
            if (!is_known && share[b - first] > 0.0f) {
                own = mass_of_block(row.x, row.n, b, {row.block_largest[b], temperature});
            }
            block_masses[b] = share[b - first] * own;
            mass += block_masses[b];
        }
    });
    return mass;
}

static void weigh(Candidate *c, int64_t n, float largest, float temperature) {
    const Weights weights(largest, temperature);
    for_lanes(n, [&](int64_t i, int64_t count) {
        alignas(64) float x[kLanes] = {};
        for (int64_t j = 0; j < count; ++j) x[j] = c[i + j].logit;
        store(x, weights.of(load(x)));
        for (int64_t j = 0; j < count; ++j) c[i + j].weight = x[j];
    });
}

// All tokens whose logit reaches `least`, in order of id.
static int64_t gather(const LogitRow &row, float least, Candidate *found) {
    int64_t n = 0;
    for (int64_t b = 0; b < row.num_blocks(); ++b) {
        if (row.block_largest[b] < least || row.is_empty(b)) continue;
        const int64_t start = b * kBlock;
        for_lanes(row.block_end(b) - start, [&](int64_t i, int64_t count) {
            uint32_t found_here = reaching(load_some(row.x + start + i, count), broadcast(least));
            found_here &= (1u << count) - 1u;
            for (; found_here != 0; found_here &= found_here - 1) {
                const int64_t id = start + i + lowest_bit(found_here);
                found[n++] = {row.x[id], 0.0f, id};
            }
        });
    }
    return n;
}

// The k-th largest of n numbers, and k is not above n. `spare` has room for n.
static float kth_largest(const float *x, int64_t n, int64_t k, float *spare) {
    if (k > 2 * kLanes) {
        std::copy(x, x + n, spare);
        std::nth_element(spare, spare + k - 1, spare + n, std::greater<float>());
        return spare[k - 1];
    }
    // The k largest so far, the largest first: few numbers reach the last of them.
    std::fill(spare, spare + k, kNone);
    for_lanes(n, [&](int64_t i, int64_t count) {
        uint32_t left = reaching(load_some(x + i, count, kNone), broadcast(spare[k - 1]));
        for (; left != 0; left &= left - 1) {
            const int64_t lane = lowest_bit(left);
            if (lane >= count || x[i + lane] <= spare[k - 1]) continue;
            int64_t place = k - 1;
            for (; place > 0 && spare[place - 1] < x[i + lane]; --place) spare[place] = spare[place - 1];
            spare[place] = x[i + lane];
        }
    });
    return spare[k - 1];
}

// The k likeliest tokens, or all that there are, in no order; among equals the first.
static int64_t gather_top(const LogitRow &row, int64_t k, Candidate *found, float *spare) {
    float least = kNone;
    if (k <= row.num_blocks()) {
        // So many blocks have a logit that reaches the k-th largest of their maxima.
        least = kth_largest(row.block_largest, row.num_blocks(), k, spare);
    }
    const int64_t n = gather(row, least, found);
    select(found, n, k);
    return std::min(n, k);
}
