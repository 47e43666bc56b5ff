// Runs the CUDA kernels that keyface carries on a CPU, one thread after the other. The file of the kernels is
// given by -DKERNELS="...".

#include <cmath>
#include <cstddef>
#include <utility>

#define __global__
#define __device__

struct Index {
    unsigned x, y, z;
};
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;

static unsigned atomicAdd(unsigned* to, unsigned value) {
    unsigned before = *to;
    *to += value;
    return before;
}

#include KERNELS

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A>
static void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, void** arguments) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++)
                            call(kernel, arguments, std::index_sequence_for<A...>{});
}

template <class... A>
static int sizes(void (*)(A...), int* bytes) {
    int n = 0;
    ((bytes[n++] = (int)sizeof(A)), ...);
    return n;
}

#define KERNEL(name)                                                                                            \
    extern "C" int sizes_##name(int* bytes) { return sizes(name, bytes); }                                      \
    extern "C" void run_##name(const unsigned* grid, const unsigned* block, void** arguments) {                 \
        launch(name, grid, block, arguments);                                                                   \
    }

KERNEL(clear_sum)
KERNEL(fill_canvas)
KERNEL(read_canvas)
KERNEL(crop_faces)
KERNEL(bend_crop)
KERNEL(paste_face)
