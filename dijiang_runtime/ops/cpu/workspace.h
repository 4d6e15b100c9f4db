// Memory of a step, kept from one step to the next: nothing is allocated once it is large enough.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace dijiang {

// Hands out aligned pieces of memory, one after the other, not initialised. From a null start it
// only learns how many bytes are wanted; those pieces must not be touched.
class Arena {
public:
    explicit Arena(void *start) : start_(reinterpret_cast<intptr_t>(start)) {}

    template <class T>
    T *take(int64_t count) {
        T *piece = reinterpret_cast<T *>(start_ + used_);
        used_ += rounded(count * static_cast<int64_t>(sizeof(T)));
        return piece;
    }

    int64_t used() const { return used_; }

    static constexpr int64_t kAlignment = 64;
    static int64_t rounded(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

private:
    const intptr_t start_;
    int64_t used_ = 0;
};

// Memory of the same size for each thread; whole cache lines, so that no two share one.
template <class T>
struct PerThread {
    T *start;
    int64_t count;

    static PerThread take(Arena &arena, int64_t count, int threads) {
        return {arena.take<T>(threads * count), count};
    }
    T *of(int member) const { return start + member * count; }
};

class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace &) = delete;
    Workspace &operator=(const Workspace &) = delete;
    ~Workspace() { std::free(memory_); }

    // What `layout` makes of an arena that has all it takes. What was taken before is lost.
    template <class Layout>
    auto lay_out(Layout layout) {
        Arena probe(nullptr);
        layout(probe);
        reserve(probe.used());
        Arena arena(memory_);
        return layout(arena);
    }

private:
    void reserve(int64_t bytes) {
        if (bytes <= capacity_) return;
        std::free(memory_);
        capacity_ = Arena::rounded(bytes + bytes / 4);
        memory_ = std::aligned_alloc(Arena::kAlignment, capacity_);
        if (memory_ == nullptr) std::abort();
    }

    void *memory_ = nullptr;
    int64_t capacity_ = 0;
};

}  // namespace dijiang
