// What is changed of rows of logits before tokens are chosen: biases, penalties, masks.

static void penalise(float *x, const Penalties &p) {
    for (int64_t i = 0; i < p.num_tokens; ++i) {
        float &logit = x[p.tokens[i]];
        logit = logit > 0.0f ? logit / p.repetition : logit * p.repetition;
        logit -= p.frequency * p.counts[i] + (p.counts[i] > 0.0f ? p.presence : 0.0f);
        logit = logit > p.least ? logit : p.least;
    }
}

// Whether all words of a mask for one block are the same: with all bits set, or none.
static inline bool all_words(const uint32_t *bits, int64_t n, int64_t b, uint32_t each) {
    constexpr int64_t words = kBlock / 32;
    const int64_t end = std::min((n + 31) / 32, (b + 1) * words);
    return std::all_of(bits + b * words, bits + end, [&](uint32_t word) { return word == each; });
}

// Make the logits of a block whose bit is not set -infinity, and return the largest that is left.
static float mask_block(float *x, int64_t n, int64_t b, const uint32_t *bits) {
    Vec largest = broadcast(kNone);
    const int64_t start = b * kBlock;
    for_lanes(std::min(n - start, kBlock), [&](int64_t i, int64_t count) {
        const uint32_t lanes = bits[(start + i) / 32] >> (start + i) % 32;
        const Vec some = load_some(x + start + i, count, kNone);
        const Vec left = choose(lanes, some, broadcast(kNone));
        store_some(x + start + i, count, left);
        largest = max(left, largest);
    });
    return largest_lane(largest);
}

// The likeliest token that all masks let in, the first among equals; the first of all where they let
// none in. Blocks that hold nothing likelier than what was found are not looked at.
static int64_t likeliest_let_in(const LogitRow &row, const uint32_t *const (&masks)[2]) {
    float best = kNone;
    int64_t found = 0;
    const auto look = [&](int64_t b) {
        for (int64_t start = b * kBlock; start < row.block_end(b); start += 32) {
            uint32_t left = 0xffffffffu;
            for (const uint32_t *bits : masks) left &= bits ? bits[start / 32] : left;
            for (; left != 0; left &= left - 1) {
                const int64_t i = start + lowest_bit(left);
                if (i >= row.n || row.x[i] < best || (row.x[i] == best && i >= found)) continue;
                best = row.x[i];
                found = i;
            }
        }
    };
    const int64_t blocks = row.num_blocks();
    look(first_reaching(row.block_largest, blocks, row.largest));
    for_lanes(blocks, [&](int64_t first, int64_t count) {
        uint32_t left = reaching(load_some(row.block_largest + first, count, kNone), broadcast(best));
        for (left &= (1u << count) - 1u; left != 0; left &= left - 1) look(first + lowest_bit(left));
    });
    return found;
}

// What of a row is about to be changed, here and there: fetched all at once.
static void fetch_blocks(const float *x, const int64_t *tokens, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const float *block = x + tokens[i] / kBlock * kBlock;
        for (int64_t v = 0; v < kPanelVectors; ++v) prefetch(block + v * kLanes);
    }
}

// What is known of the blocks of a row that changes, kept up to date.
struct Notes {
    const float *x;
    int64_t n;
    float *largest, *mass;  // Of each block; null where nothing is known.
    float temperature;      // Of the masses; 0 where they are not.

    Notes(const float *row, int64_t size, const Panels &known, int64_t r)
        : x(row), n(size), largest(nullptr), mass(nullptr), temperature(0.0f) {
        if (!known.largest) return;
        largest = known.largest + r * blocks_of(n);
        mass = known.mass + r * blocks_of(n);
        temperature = known.temperature ? known.temperature[r] : 0.0f;
    }

    void set(int64_t b, float top) const {
        if (!largest) return;
        largest[b] = top;
        if (temperature <= 0.0f) return;
        mass[b] = top == kNone ? 0.0f : mass_of_block(x, n, b, {top, temperature});
    }

    void look_at(const int64_t *tokens, int64_t count) const {
        for (int64_t i = 0, last = -1; largest && i < count; ++i) {
            if (tokens[i] / kBlock == last) continue;
            last = tokens[i] / kBlock;
            set(last, largest_of_block(x, n, last));
        }
    }
};

static void change_tokens(float *x, const Adjustment &a, const Notes &notes) {
    const Penalties &p = a.penalties;
    fetch_blocks(x, a.biased, a.num_biased);
    fetch_blocks(x, p.tokens, p.num_tokens);
    for (int64_t i = 0; i < a.num_biased; ++i) x[a.biased[i]] += a.bias[i];
    for (int64_t i = 0; i < a.num_suppressed; ++i) x[a.suppressed[i]] = p.least;
    penalise(x, p);
    notes.look_at(a.biased, a.num_biased);
    notes.look_at(a.suppressed, a.num_suppressed);
    notes.look_at(p.tokens, p.num_tokens);
}

// A block of which nothing is left is left as it is where that is noted.
static void mask_row(float *x, int64_t n, const uint32_t *bits, const Notes &notes) {
    for (int64_t b = 0; b < blocks_of(n); ++b) {
        if (all_words(bits, n, b, ~0u) || (notes.largest && notes.largest[b] == kNone)) continue;
        const bool is_read = !notes.largest || !all_words(bits, n, b, 0u);
        notes.set(b, is_read ? mask_block(x, n, b, bits) : kNone);
    }
}

static void adjust(Team &team, Workspace &workspace, float *logits, const Panels &panels, int64_t n,
                   const Adjustment *adjustments, int64_t count, int64_t *likeliest) {
    const int64_t blocks = blocks_of(n);
    float *const memory =
        workspace.lay_out([&](Arena &a) { return a.take<float>(blocks * team.size()); });
    team.for_each(count, [&](int64_t i, int member) {
        const Adjustment &a = adjustments[i];
        float *x = logits + a.row * n;
        const Notes notes(x, n, panels, a.row);
        change_tokens(x, a, notes);
        for (const uint32_t *bits : a.masks) {
            if (a.is_drawn && bits) mask_row(x, n, bits, notes);
        }
        const LogitRow row = read_row(logits, n, panels, a.row, memory + member * blocks);
        const bool is_masked = !a.is_drawn && (a.masks[0] || a.masks[1]);
        likeliest[i] = is_masked ? likeliest_let_in(row, a.masks)
                                 : place_of_largest(row.x, n, row.block_largest);
    });
}
