// The tokens of one row that may still be drawn, and the cuts that leave fewer of them. Plain code
// for any processor: the tokens are few, and the sorting is the standard library's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dijiang {

struct Candidate {
    float logit;
    float weight;  // e^((logit - largest) / temperature)
    int64_t id;
};

// Whether a is likelier than b; among equals the first is.
inline bool is_before(const Candidate &a, const Candidate &b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

inline double mass_of(const Candidate *c, int64_t n) {
    double mass = 0.0;
    for (int64_t i = 0; i < n; ++i) mass += c[i].weight;
    return mass;
}

// Bring the k likeliest to the front, in no order.
inline void select(Candidate *c, int64_t n, int64_t k) {
    if (k < n) std::nth_element(c, c + k, c + n, is_before);
}

inline void sort_by_likelihood(Candidate *c, int64_t n) { std::sort(c, c + n, is_before); }

inline void sort_by_id(Candidate *c, int64_t n) {
    std::sort(c, c + n, [](const Candidate &a, const Candidate &b) { return a.id < b.id; });
}

// Keep those for which it is true, in the order in which they are; returns how many. No branch: the
// processor could only guess.
template <class Condition>
inline int64_t keep(Candidate *c, int64_t n, Condition condition) {
    int64_t num_kept = 0;
    for (int64_t i = 0; i < n; ++i) {
        const Candidate one = c[i];
        c[num_kept] = one;
        num_kept += condition(one);
    }
    return num_kept;
}

inline int64_t drop_lighter(Candidate *c, int64_t n, float least) {
    return keep(c, n, [&](const Candidate &x) { return x.weight >= least; });
}

constexpr int64_t kBucketsPerUnit = 16;
constexpr int64_t kBuckets = 88 * kBucketsPerUnit;  // Below e^-87 weights are 0.

// Candidates by likelihood, coarsely: those of an earlier bucket are likelier.
inline int64_t bucket_of(const Candidate &c, float largest, float per_logit) {
    const float place = (largest - c.logit) * per_logit;
    return place < kBuckets - 1 ? static_cast<int64_t>(place) : kBuckets - 1;
}

// The last of the fewest likeliest of n that have the mass wanted, or the least likely of all.
inline Candidate last_of_share(Candidate *c, int64_t n, double share) {
    // The first `low` have too little mass, and the first `high` enough, or are all there are.
    int64_t low = 0, high = n;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        std::nth_element(c + low, c + middle, c + high, is_before);
        const double mass = mass_of(c + low, middle - low);
        if (mass >= share) {
            high = middle;
        } else {
            share -= mass;
            low = middle;
        }
    }
    return c[low];
}

// Keep the fewest likeliest of n whose mass reaches `share`, in the order in which they are, and
// return how many those are. `spare` has room for n. Only the bucket in which the mass is reached
// is looked at closely.
inline int64_t cut_nucleus(Candidate *c, int64_t n, double share, float largest, float temperature,
                           Candidate *spare) {
    const float per_logit = kBucketsPerUnit / temperature;
    double masses[kBuckets] = {};
    int64_t least_likely = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t bucket = bucket_of(c[i], largest, per_logit);
        masses[bucket] += c[i].weight;
        least_likely = std::max(least_likely, bucket);
    }
    int64_t bucket = 0;
    while (bucket < least_likely && masses[bucket] < share) share -= masses[bucket++];
    int64_t num_close = 0;
    for (int64_t i = 0; i < n; ++i) {
        spare[num_close] = c[i];
        num_close += bucket_of(c[i], largest, per_logit) == bucket;
    }
    const Candidate last = last_of_share(spare, num_close, share);
    return keep(c, n, [&](const Candidate &x) {
        return (x.logit > last.logit) | ((x.logit == last.logit) & (x.id <= last.id));
    });
}

// The point of a cumulative distribution that a number in [0, 1) stands for. The product may round
// up to the total, beyond the last token that has a probability.
inline double point_of(double uniform, double total) {
    return std::min(uniform * total, std::nextafter(total, 0.0));
}

// The candidate where the cumulative mass, in the order in which they are, passes the point.
inline int64_t draw_among(const Candidate *c, int64_t n, double uniform) {
    const double point = point_of(uniform, mass_of(c, n));
    double mass = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        mass += c[i].weight;
        if (mass > point) return c[i].id;
    }
    return c[n - 1].id;
}

}  // namespace dijiang
