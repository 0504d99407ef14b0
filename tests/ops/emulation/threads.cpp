// The threads of a block are fibers: each runs until it ends or waits for others. A fiber whose thread has ended takes
// the next thread that has not begun, so that kernels without barriers never switch.
#include "threads.h"

#include "fibers.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ammnet_sparse::emulation {

Place place;

enum class State : uint8_t { kNotBegun, kReady, kWaiting, kEnded };

struct Thread {
  unsigned int number = 0;
  dim3 index;
  State state = State::kNotBegun;
  Fiber* fiber = nullptr;
  const char* waits_at = nullptr;
  std::source_location where;
  unsigned int exchanges = 0;
};

namespace {

constexpr unsigned int kAllLanes = 0xFFFFFFFFu;
constexpr unsigned int kMostThreads = 1024;
constexpr unsigned int kMostBlocks = 65535;  // along y and z

std::string text_of(std::source_location where) {
  const std::string path = where.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(where.line());
}

thread_local volatile unsigned char touched = 0;

// What all __shared__ variables of this library or program lie in, for the calling thread.
std::span<unsigned char> shared_memory() {
  touched = 1;  // a library has no such memory before its first use on a thread
  std::span<unsigned char> found;
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void* result) {
        const auto own = reinterpret_cast<uintptr_t>(&place) - module->dlpi_addr;
        const std::span segments(module->dlpi_phdr, module->dlpi_phnum);
        const bool is_own = std::any_of(segments.begin(), segments.end(), [&](const auto& segment) {
          return segment.p_type == PT_LOAD && own - segment.p_vaddr < segment.p_memsz;
        });
        for (const auto& segment : segments) {
          if (is_own && segment.p_type == PT_TLS) {
            *static_cast<std::span<unsigned char>*>(result) = {
                static_cast<unsigned char*>(module->dlpi_tls_data), segment.p_memsz};
          }
        }
        return is_own ? 1 : 0;
      },
      &found);
  return found;
}

// Lanes that have come to an exchange. Two sets of values, as a lane may go on to the next exchange before another
// has read those of this one.
struct Warp {
  std::array<std::array<uint64_t, kLanes>, 2> values{};
  int num_arrived = 0;
  std::source_location where;
  const char* name = nullptr;
};

void fiber_main();

class Machine {
 public:
  Machine() {
    if (const char* seed = std::getenv("AMMNET_SPARSE_EMULATION_SEED"); seed != nullptr && *seed != '\0') {
      size_t length = 0;
      const std::string text = seed;
      try {
        random_.emplace(std::stoull(text, &length));
      } catch (const std::logic_error&) {
        length = 0;
      }
      if (length != text.size()) {
        throw std::runtime_error("AMMNET_SPARSE_EMULATION_SEED: expected an integer, found " + text);
      }
    }
  }

  void run_grid(dim3 blocks, dim3 threads, const std::function<void()>& body) {
    const std::lock_guard<std::mutex> lock(mutex_);  // autograd has threads of its own
    const uint64_t num_threads = uint64_t{threads.x} * threads.y * threads.z;
    if (num_threads == 0 || num_threads > kMostThreads || blocks.x == 0 || blocks.y == 0 || blocks.z == 0 ||
        blocks.y > kMostBlocks || blocks.z > kMostBlocks) {
      throw std::runtime_error(
          "invalid configuration of a launch: blocks " + text_of_size(blocks) + ", threads " + text_of_size(threads));
    }
    body_ = &body;
    place = {{0, 0, 0}, {0, 0, 0}, threads, blocks};
    const auto shared = shared_memory();
    std::vector<uint64_t> order(uint64_t{blocks.x} * blocks.y * blocks.z);
    std::iota(order.begin(), order.end(), uint64_t{0});
    shuffle(order);
    for (const uint64_t number : order) {
      place.block = {
          static_cast<unsigned int>(number % blocks.x), static_cast<unsigned int>(number / blocks.x % blocks.y),
          static_cast<unsigned int>(number / blocks.x / blocks.y)};
      std::memset(shared.data(), 0xFF, shared.size());  // as numbers: -1 and NaN
      run_block(static_cast<unsigned int>(num_threads));
    }
  }

  // Of the thread that runs.
  void wait_for_block(const char* name, std::source_location where) {
    Thread& self = *running_->thread;
    if (num_ended_ > 0) {
      fail(name, where, "threads of the block have ended before others reach it");
    }
    if (num_at_barrier_ > 0 && !is_same(where, where_barrier_)) {
      fail(name, where, "others of the block wait at " + text_of(where_barrier_));
    }
    where_barrier_ = where;
    if (++num_at_barrier_ == threads_.size()) {
      num_at_barrier_ = 0;
      for (Thread& thread : threads_) {
        if (&thread != &self) {
          make_ready(thread);
        }
      }
      pause();
      return;
    }
    wait(name, where);
  }

  const std::array<uint64_t, kLanes>& exchange(
      const char* name, unsigned int mask, uint64_t value, std::source_location where) {
    Thread& self = *running_->thread;
    Warp& warp = warps_[self.number / kLanes];
    if (mask != kAllLanes) {
      fail(name, where, "expected the full mask 0xFFFFFFFF, found " + std::to_string(mask));
    }
    if (warp.num_arrived > 0 && (!is_same(where, warp.where) || std::string(name) != warp.name)) {
      fail(name, where, "other lanes of the warp wait at " + std::string(warp.name) + ", " + text_of(warp.where));
    }
    warp.where = where;
    warp.name = name;
    auto& values = warp.values[self.exchanges++ % 2];
    values[self.number % kLanes] = value;
    if (++warp.num_arrived == kLanes) {
      warp.num_arrived = 0;
      const size_t first = self.number / kLanes * kLanes;
      for (size_t lane = first; lane < first + kLanes; ++lane) {
        if (lane != self.number) {
          make_ready(threads_[lane]);
        }
      }
    } else {
      wait(name, where);
    }
    return values;
  }

  // The thread that runs stays ready, and others may come first; in ascending order it just goes on.
  void pause() {
    if (random_ && (*random_)() % 4 == 0) {
      make_ready(*running_->thread);
      leave();
    }
  }

  // On the stack of a fiber: threads that have not begun, one after the other.
  void run_threads() {
    Fiber& self = *running_;
    after_switch(nullptr, &scheduler_stack_);
    while (next_ < order_.size() && !error_) {
      Thread& thread = threads_[order_[next_++]];
      self.thread = &thread;
      thread.fiber = &self;
      place.thread = thread.index;
      try {
        (*body_)();
      } catch (...) {
        error_ = std::current_exception();
      }
      thread.state = State::kEnded;
      ++num_ended_;
    }
    self.thread = nullptr;
    free_.push_back(&self);
    before_switch(nullptr, scheduler_stack_);
    setcontext(&scheduler_);
  }

 private:
  void run_block(unsigned int num_threads) {
    begin_block(num_threads);
    while (num_ended_ < threads_.size()) {
      if (!ready_.empty() && (next_ == order_.size() || !random_ || (*random_)() % 2 == 0)) {
        resume(*take_ready().fiber);
      } else if (next_ < order_.size()) {
        start(free_fiber());
      } else {
        fail_stuck();
      }
      if (error_) {
        std::rethrow_exception(std::exchange(error_, nullptr));
      }
    }
  }

  void begin_block(unsigned int num_threads) {
    threads_.assign(num_threads, Thread{});
    warps_.assign((num_threads + kLanes - 1) / kLanes, Warp{});
    const dim3& size = place.block_size;
    for (unsigned int number = 0; number < num_threads; ++number) {
      threads_[number].number = number;
      threads_[number].index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
    }
    order_.resize(num_threads);
    std::iota(order_.begin(), order_.end(), 0u);
    shuffle(order_);
    free_.clear();
    for (const auto& fiber : fibers_) {  // all: an error may have left some in the middle of their threads
      fiber->thread = nullptr;
      free_.push_back(fiber.get());
    }
    ready_.clear();
    next_ = num_ended_ = num_at_barrier_ = 0;
    error_ = nullptr;
  }

  Fiber& free_fiber() {
    if (free_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      return *fibers_.back();
    }
    Fiber& fiber = *free_.back();
    free_.pop_back();
    return fiber;
  }

  void start(Fiber& fiber) {
    fiber.prepare(&fiber_main);
    resume(fiber);
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
    if (fiber.thread != nullptr) {
      place.thread = fiber.thread->index;
    }
    void* saved = nullptr;
    before_switch(&saved, fiber.stack);
    swapcontext(&scheduler_, &fiber.context);
    after_switch(saved, nullptr);
  }

  // The thread that runs gives way; returns when it is resumed.
  void leave() {
    Fiber& self = *running_;
    before_switch(&self.saved, scheduler_stack_);
    swapcontext(&self.context, &scheduler_);
    after_switch(self.saved, &scheduler_stack_);
  }

  void wait(const char* name, std::source_location where) {
    Thread& self = *running_->thread;
    self.state = State::kWaiting;
    self.waits_at = name;
    self.where = where;
    leave();
  }

  void make_ready(Thread& thread) {
    thread.state = State::kReady;
    ready_.push_back(&thread);
  }

  Thread& take_ready() {
    if (random_) {
      std::swap(ready_.front(), ready_[(*random_)() % ready_.size()]);
    }
    Thread& thread = *ready_.front();
    ready_.pop_front();
    return thread;
  }

  template <typename Numbers>
  void shuffle(Numbers& numbers) {
    if (random_) {
      std::shuffle(numbers.begin(), numbers.end(), *random_);
    }
  }

  static bool is_same(std::source_location one, std::source_location other) {
    return one.line() == other.line() && one.column() == other.column() &&
           std::string(one.file_name()) == other.file_name();
  }

  static std::string text_of_size(dim3 size) {
    return std::to_string(size.x) + " x " + std::to_string(size.y) + " x " + std::to_string(size.z);
  }

  [[noreturn]] void fail(const char* name, std::source_location where, const std::string& what) const {
    throw std::runtime_error(
        std::string(name) + ", " + text_of(where) + ", thread " + std::to_string(running_->thread->number) + ": " +
        what);
  }

  [[noreturn]] void fail_stuck() const {
    const auto waiting = std::find_if(
        threads_.begin(), threads_.end(), [](const Thread& thread) { return thread.state == State::kWaiting; });
    const auto num_waiting = static_cast<size_t>(std::count_if(
        threads_.begin(), threads_.end(), [](const Thread& thread) { return thread.state == State::kWaiting; }));
    throw std::runtime_error(
        std::string(waiting->waits_at) + ", " + text_of(waiting->where) + ": " + std::to_string(num_waiting) + " of " +
        std::to_string(threads_.size()) + " threads of the block wait, and the others have ended");
  }

  std::mutex mutex_;
  std::optional<std::mt19937_64> random_;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
  Fiber* running_ = nullptr;
  ucontext_t scheduler_{};
  Stack scheduler_stack_;
  // Of the block that runs.
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned int> order_;
  size_t next_ = 0;  // in order_, the first that has not begun
  std::deque<Thread*> ready_;
  size_t num_ended_ = 0;
  size_t num_at_barrier_ = 0;
  std::source_location where_barrier_;
  std::exception_ptr error_;
};

Machine& machine() {
  static Machine machine;
  return machine;
}

void fiber_main() {
  machine().run_threads();
}

}  // namespace

void run_grid(dim3 blocks, dim3 threads, const std::function<void()>& thread) {
  machine().run_grid(blocks, threads, thread);
}

void wait_for_block(const char* name, std::source_location where) {
  machine().wait_for_block(name, where);
}

const std::array<uint64_t, kLanes>& exchange(
    const char* name, unsigned int mask, uint64_t value, std::source_location where) {
  return machine().exchange(name, mask, value, where);
}

void pause() {
  machine().pause();
}

void check_lane(const char* name, int lane, std::source_location where) {
  if (lane < 0 || lane >= kLanes) {
    throw std::runtime_error(
        std::string(name) + ", " + text_of(where) + ": expected a lane of 0 .. 31, found " + std::to_string(lane));
  }
}

void check_alignment(const void* address, size_t alignment, std::source_location where) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    throw std::runtime_error(
        text_of(where) + ", block " + std::to_string(place.block.x) + ", thread " + std::to_string(place.thread.x) +
        ": expected an address that is a multiple of " + std::to_string(alignment) + ", found one that leaves " +
        std::to_string(reinterpret_cast<uintptr_t>(address) % alignment));
  }
}

}  // namespace ammnet_sparse::emulation
