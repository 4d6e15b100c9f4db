// A few threads that share out the parts of a step, and sleep when there is none.
//
// Work is handed out by output, never by part of a sum, so results do not depend on the number of
// threads or on who computed what. The caller waits for parts, not for threads: a helper that has
// lost its core to another program delays nothing, unless it lost it in the middle of a part.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace dijiang {

class Team {
public:
    // The caller is one of the threads; the others start here and live as long as the process.
    explicit Team(int size);

    int size() const { return size_; }

    // For one caller at a time: hold this from the first for_each of a step to its last.
    std::mutex &one_at_a_time() { return one_at_a_time_; }

    // Share out f(i, member) for i = 0 ... count - 1, and return when all are done. `member` is
    // below size(), and no two threads have the same.
    template <class Function>
    void for_each(int64_t count, Function f) {
        if (size_ == 1 || count <= 1) {
            for (int64_t i = 0; i < count; ++i) f(i, 0);
            return;
        }
        share_out(count, [](void *g, int64_t i, int member) { (*static_cast<Function *>(g))(i, member); },
                  &f);
    }

    // The same, in runs of up to `longest`, shorter where threads would be left without.
    template <class Function>
    void for_runs(int64_t count, int64_t longest, Function f) {
        int64_t length = count / (4 * size_);
        length = length < 1 ? 1 : length > longest ? longest : length;
        for_each((count + length - 1) / length, [&](int64_t run, int member) {
            const int64_t end = run * length + length;
            for (int64_t i = run * length; i < (end < count ? end : count); ++i) f(i, member);
        });
    }

private:
    using Part = void (*)(void *, int64_t, int);

    void share_out(int64_t count, Part part, void *function);
    bool take_one(int member);
    void help(int member);
    void sleep();

    const int size_;
    std::mutex one_at_a_time_;

    // The round's number in the upper half and the next part in the lower: a part is taken by a
    // compare-and-swap of both, so a late helper never takes a part of a round that is over.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int64_t> num_done_{0};
    // Written between rounds only. What a helper has read of them counts once it has its part.
    alignas(64) std::atomic<uint64_t> count_{0};
    std::atomic<Part> part_{nullptr};
    std::atomic<void *> function_{nullptr};

    alignas(64) std::atomic<int> num_asleep_{0};
    std::mutex sleeping_;
    std::condition_variable wake_;
};

}  // namespace dijiang
