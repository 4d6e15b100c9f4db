// A row of logits, in blocks of which the largest are known, and what is found in it by them.

// Logits that are looked at together, or skipped together: those of a panel, whose largest is known
// where the logits were made here.
constexpr int64_t kBlock = kPanelColumns;

static inline int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// The bits of 16 tokens from the i-th on, a multiple of 16, in the lowest; more may follow.
static inline uint32_t bits_from(const uint32_t *mask, int64_t i) { return mask[i / 32] >> i % 32; }

// A row of logits, and what is known of each block of it. Where the largest is -infinity nothing in
// the block may come, whatever is in it.
struct LogitRow {
    const float *x;
    int64_t n;
    const uint32_t *mask;  // Of tokens that may come; null where all may.
    const float *block_largest;
    const float *block_mass;  // Null where it is not known;
    float mass_temperature;   // at which it is.
    float largest;

    int64_t num_blocks() const { return blocks_of(n); }
    int64_t block_end(int64_t b) const { return std::min((b + 1) * kBlock, n); }

    // The logits of at most 16 tokens from the i-th on, -infinity for those that may not come.
    Vec logits_from(int64_t i, int64_t count) const {
        const Vec all = load_some(x + i, count, kNone);
        return mask ? choose(bits_from(mask, i), all, broadcast(kNone)) : all;
    }

    // Call f(i, count, logits) for each such run of a block.
    template <class Function>
    void for_block(int64_t b, Function f) const {
        for_lanes(block_end(b) - b * kBlock, [&](int64_t offset, int64_t count) {
            const int64_t i = b * kBlock + offset;
            f(i, count, logits_from(i, count));
        });
    }
};

static inline float largest_of_block(const LogitRow &row, int64_t b) {
    Vec largest = broadcast(kNone);
    row.for_block(b, [&](int64_t, int64_t, Vec some) { largest = max(some, largest); });
    return largest_lane(largest);
}

// The sum of a block's weights, where its largest logit weighs 1.
static inline float mass_of_block(const LogitRow &row, int64_t b, const Weights &weights) {
    Vec total = broadcast(0.0f);
    row.for_block(b, [&](int64_t, int64_t, Vec some) { total = add(total, weights.of(some)); });
    return sum_lanes(total);
}

// A row of some of which the panels may be known. `memory` has room for a number of each block.
static LogitRow read_row(const float *x, int64_t n, const Panels &known, int64_t r, float *memory) {
    LogitRow row{x + r * n, n, known.mask(r), nullptr, nullptr, 0.0f, kNone};
    if (known.largest) {
        row.block_largest = known.largest + r * row.num_blocks();
        row.mass_temperature = known.temperature ? known.temperature[r] : 0.0f;
        if (row.mass_temperature > 0.0f) row.block_mass = known.mass + r * row.num_blocks();
    } else {
        for (int64_t b = 0; b < row.num_blocks(); ++b) memory[b] = largest_of_block(row, b);
        row.block_largest = memory;
    }
    row.largest = largest_of(row.block_largest, row.num_blocks());
    return row;
}

// The same row with all its tokens, whether they may come or not.
static LogitRow read_whole_row(const float *x, int64_t n, const Panels &known, int64_t r, float *memory) {
    return read_row(x, n, known.mask(r) ? Panels{} : known, r, memory);
}

// The likeliest token, the first among equals; the first of all where none may come.
static int64_t likeliest_of(const LogitRow &row) {
    if (row.largest == kNone) return 0;
    const int64_t b = first_reaching(row.block_largest, row.num_blocks(), row.largest);
    int64_t found = row.block_end(b);
    row.for_block(b, [&](int64_t i, int64_t, Vec some) {
        const uint32_t lanes = reaching(some, broadcast(row.largest));
        if (lanes != 0) found = std::min(found, i + lowest_bit(lanes));
    });
    return std::min(found, row.n - 1);  // A row that is not finite may have none.
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
                own = mass_of_block(row, b, {row.block_largest[b], temperature});
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

// All tokens that may come and whose logit reaches `least`, in order of id.
static int64_t gather(const LogitRow &row, float least, Candidate *found) {
    least = std::max(least, std::numeric_limits<float>::lowest());  // The others' are below that.
    int64_t n = 0;
    for (int64_t b = 0; b < row.num_blocks(); ++b) {
        if (row.block_largest[b] < least) continue;
        row.for_block(b, [&](int64_t first, int64_t, Vec some) {
            uint32_t lanes = reaching(some, broadcast(least));
            for (; lanes != 0; lanes &= lanes - 1) {
                const int64_t id = first + lowest_bit(lanes);
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
