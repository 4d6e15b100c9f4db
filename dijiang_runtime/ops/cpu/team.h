// A few threads that compute one step together and sleep between steps.
//
// Work is handed out by output, never by part of a sum, so results do not depend on the number of
// threads or on who computed what.
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

    // Let every thread run body(member), member = 0 ... size - 1, and wait for all of them.
    template <class Body>
    void run(Body body) {
        std::lock_guard<std::mutex> one_at_a_time(running_);
        if (size_ > 1) start([](void *b, int member) { (*static_cast<Body *>(b))(member); }, &body);
        body(0);
        barrier();
    }

    // Inside run: share out f(0) ... f(count - 1), and wait until all are done.
    template <class Function>
    void for_each(int64_t count, Function f) {
        if (size_ == 1) {
            for (int64_t i = 0; i < count; ++i) f(i);
            return;
        }
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
        barrier();
    }

    void barrier();

private:
    using Job = void (*)(void *, int);

    void start(Job job, void *body);
    void work(int member);
    uint64_t wait_for_job(uint64_t last);

    const int size_;
    std::mutex running_;
    Job job_ = nullptr;
    void *body_ = nullptr;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint64_t> phase_{0};
    alignas(64) std::atomic<uint64_t> num_jobs_{0};
    std::mutex sleeping_;
    std::condition_variable wake_;
};

}  // namespace dijiang
