// Rows of logits to tokens and logprobs. A row is worked on by one thread and added up in one fixed
// order, so what comes out depends neither on its neighbours nor on the number of threads.

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
            store(weight, of_block.of(load_some(row.x + i, count, kNone)));
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
            read_row(q.logits, q.vocab_size, *q.panels, q.rows[i], memory.block_largest);
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

// Whether all numbers are finite, and the place of the largest, the first among equals. One pass: a
// block that holds a larger one than all before is remembered, and searched in the end.
static void scan_row(const float *x, int64_t n, uint8_t *finite, int64_t *likeliest) {
    constexpr int64_t block = 32 * kLanes;
    Vec spoilt = broadcast(0.0f);  // NaN once a number is not finite.
    float largest = kNone;
    int64_t found = 0;
    for (int64_t start = 0; start < n; start += block) {
        Vec top = broadcast(kNone);
        for_lanes(n - start < block ? n - start : block, [&](int64_t i, int64_t count) {
            const Vec some = load_some(x + start + i, count, x[start]);
            spoilt = fma(some, broadcast(0.0f), spoilt);
            top = max(some, top);
        });
        if (reaching(broadcast(largest), top) != (1u << kLanes) - 1u) {
            largest = largest_lane(top);
            found = start;
        }
    }
    *finite = sum_lanes(spoilt) == 0.0f;
    *likeliest = found;
    for (int64_t i = found; i < n && i < found + block; ++i) {
        if (x[i] == largest) {
            *likeliest = i;
            return;
        }
    }
}

static void scan_rows(Team &team, const float *x, int64_t num_rows, int64_t n, uint8_t *finite,
                      int64_t *likeliest) {
    team.for_each(num_rows, [&](int64_t i, int) {
        scan_row(x + i * n, n, finite + i, likeliest + i);
    });
}

static void penalise(float *x, const Penalties &p) {
    for (int64_t i = 0; i < p.num_tokens; ++i) {
        float &logit = x[p.tokens[i]];
        logit = logit > 0.0f ? logit / p.repetition : logit * p.repetition;
        logit -= p.frequency * p.counts[i] + (p.counts[i] > 0.0f ? p.presence : 0.0f);
        logit = logit > p.least ? logit : p.least;
    }
}

// Make the logits of block b whose bit is not set -infinity; returns whether it has become empty.
// Where that is `noted` elsewhere, nothing is written.
static bool mask_block(float *x, int64_t n, int64_t b, const uint32_t *bits, bool noted) {
    constexpr int64_t words = kBlock / 32;
    const int64_t num_words = std::min((n + 31) / 32 - b * words, words);
    bool is_empty = true;
    for (int64_t w = 0; w < num_words; ++w) is_empty &= bits[b * words + w] == 0;
    if (is_empty && noted) return true;
    for (int64_t i = b * kBlock; i < std::min(n, (b + 1) * kBlock); ++i) {
        x[i] = (bits[i / 32] >> i % 32) & 1u ? x[i] : kNone;
    }
    return is_empty;
}

static inline bool lets_all_in(const uint32_t *bits, int64_t n, int64_t b) {
    constexpr int64_t words = kBlock / 32;
    const int64_t end = std::min((n + 31) / 32, (b + 1) * words);
    return std::all_of(bits + b * words, bits + end, [](uint32_t word) { return word == 0xffffffffu; });
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

// What is known of the row is kept up to date; a block of which nothing is left is left as it is
// where the largest are known.
static void adjust_row(float *x, int64_t n, const Adjustment &a, const Panels &known) {
    const Penalties &p = a.penalties;
    fetch_blocks(x, a.biased, a.num_biased);
    fetch_blocks(x, p.tokens, p.num_tokens);
    for (int64_t i = 0; i < a.num_biased; ++i) x[a.biased[i]] += a.bias[i];
    for (int64_t i = 0; i < a.num_suppressed; ++i) x[a.suppressed[i]] = p.least;
    penalise(x, p);
    const int64_t blocks = blocks_of(n);
    float *largest = known.largest ? known.largest + a.row * blocks : nullptr;
    const float temperature = known.temperature ? known.temperature[a.row] : 0.0f;
    const auto note = [&](int64_t b, bool is_empty) {
        largest[b] = is_empty ? kNone : largest_of_block(x, n, b);
        if (temperature <= 0.0f) return;
        known.mass[a.row * blocks + b] =
            largest[b] == kNone ? 0.0f : mass_of_block(x, n, b, {largest[b], temperature});
    };
    const auto note_each = [&](const int64_t *tokens, int64_t count) {
        for (int64_t i = 0, last = -1; i < count; ++i) {
            if (tokens[i] / kBlock != last) note(last = tokens[i] / kBlock, false);
        }
    };
    if (largest) {
        note_each(a.biased, a.num_biased);
        note_each(a.suppressed, a.num_suppressed);
        note_each(p.tokens, p.num_tokens);
    }
    if (!a.is_drawn) return;
    for (const uint32_t *bits : a.masks) {
        for (int64_t b = 0; bits && b < blocks; ++b) {
            if (lets_all_in(bits, n, b) || (largest && largest[b] == kNone)) continue;
            const bool is_empty = mask_block(x, n, b, bits, largest != nullptr);
            if (largest) note(b, is_empty);
        }
    }
}

static void adjust(Team &team, Workspace &workspace, float *logits, const Panels &panels, int64_t n,
                   const Adjustment *adjustments, int64_t count, int64_t *likeliest) {
    const int64_t blocks = blocks_of(n);
    float *const memory =
        workspace.lay_out([&](Arena &a) { return a.take<float>(blocks * team.size()); });
    team.for_each(count, [&](int64_t i, int member) {
        const Adjustment &a = adjustments[i];
        adjust_row(logits + a.row * n, n, a, panels);
        const LogitRow row = read_row(logits, n, panels, a.row, memory + member * blocks);
        const bool is_masked = !a.is_drawn && (a.masks[0] || a.masks[1]);
        likeliest[i] = is_masked ? likeliest_let_in(row, a.masks)
                                 : place_of_largest(row.x, n, row.block_largest);
    });
}
