// Blocks and threads of a GPU on one thread of the CPU, for cuda_runtime.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <tuple>

struct dim3 {
  unsigned int x;
  unsigned int y;
  unsigned int z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace ammnet_sparse::emulation {

constexpr int kLanes = 32;

// Where the thread that runs stands: threadIdx, blockIdx, blockDim, gridDim.
struct Place {
  dim3 thread{0, 0, 0};
  dim3 block{0, 0, 0};
  dim3 block_size;
  dim3 grid_size;
};
extern Place place;

// Runs `thread` for every thread of every block. The environment variable AMMNET_SPARSE_EMULATION_SEED, an integer,
// shuffles the order of blocks and threads and of those that may go on; without it they run in ascending order, each
// as far as it can. Throws what a thread throws, and std::runtime_error where threads wait for what cannot come.
void run_grid(dim3 blocks, dim3 threads, const std::function<void()>& thread);

// Calls the kernel with copies of the arguments, as CUDA does.
template <typename... Parameters, typename... Arguments>
void run_kernel(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, Arguments... arguments) {
  const std::tuple<Parameters...> copies(arguments...);
  run_grid(blocks, threads, [&] { std::apply(kernel, copies); });
}

// Waits until all threads of the block are here.
void wait_for_block(const char* name, std::source_location where);

// Waits until all lanes of the warp are here; the values that they gave, good until the next exchange.
const std::array<uint64_t, kLanes>& exchange(
    const char* name, unsigned int mask, uint64_t value, std::source_location where);

// Lets other threads run first, now and then, where the order is shuffled.
void pause();

// Throw std::runtime_error.
void check_lane(const char* name, int lane, std::source_location where);
void check_alignment(
    const void* address, size_t alignment, std::source_location where = std::source_location::current());

}  // namespace ammnet_sparse::emulation
