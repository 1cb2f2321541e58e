#include <algorithm>
#include <stdexcept>

#include "augment/augment_cuda.h"
#include "augment/augment_cuda_view.h"

namespace fastcl {
namespace {

constexpr int kSampleThreads = 128;

__global__ void __launch_bounds__(kSampleThreads) augment_draw(AugmentSample problem) {
  const int64_t i = int64_t(blockIdx.x) * kSampleThreads + threadIdx.x;
  if (i >= problem.n) return;
  AugmentStream stream = problem.stream;
  if (problem.shapes) {
    stream.height = problem.shapes[3 * i];
    stream.width = problem.shapes[3 * i + 1];
  }
  problem.params[i] = draw_params(problem.recipe, stream, problem.index[i]);
}

// Where one image lies.
struct Source {
  const uint8_t* image;
  int64_t channel_stride, row_stride, pixel_stride;
  int height, width;
  bool exists;
};

__device__ __forceinline__ Source source_of(const AugmentBatch& a, int i, int channel) {
  if (!a.offsets) {
    const int64_t at = i * a.image_stride + channel * a.channel_stride;
    return {a.images + at * (a.bytes ? 1 : 4), a.channel_stride, a.row_stride, a.pixel_stride, a.height, a.width, true};
  }
  const int height = a.shapes[3 * i], width = a.shapes[3 * i + 1], channels = a.shapes[3 * i + 2];
  constexpr int most = 1 << 20;
  bool exists = height >= 1 && height <= most && width >= 1 && width <= most && channels == a.channels;
  const int64_t offset = a.offsets[i], size = exists ? int64_t(height) * width * channels : 0;
  exists = exists && offset >= 0 && offset <= a.images_end - a.images - size;
  return {a.images + (exists ? offset : 0) + channel, 1, int64_t(width) * channels, channels, height, width, exists};
}

__device__ __forceinline__ bool row_fits(const AugmentParams& p, const AugmentBatch& a, const Source& source) {
  AugmentApply of{};
  of.channels = a.channels;
  of.height = source.height;
  of.width = source.width;
  of.out_height = a.out_height;
  of.out_width = a.out_width;
  int64_t bad;
  return source.exists && params_fit(p, of, &bad);
}

// Grid: x, blocks that share out the images; y, groups of kChannels of their channels.
template <int kChannels, bool kInShared>
__global__ void __launch_bounds__(32 * kMostWarps, 1) augment_images(const __grid_constant__ AugmentBatch a) {
  FASTCL_DYNAMIC_SHARED(shared);
  FASTCL_SHARED(AugmentParams, row, [1]);
  float* const arena = reinterpret_cast<float*>(shared);
  float* const planes =
      kInShared ? arena + a.arena : a.planes + (int64_t(blockIdx.x) * gridDim.y + blockIdx.y) * a.block_planes;
  const int channel = int(blockIdx.y) * kChannels;
  for (int i = int(blockIdx.x); i < a.n; i += int(gridDim.x)) {
    __syncthreads();
    if (threadIdx.x < kParams)
      reinterpret_cast<float*>(row)[threadIdx.x] = reinterpret_cast<const float*>(a.params + i)[threadIdx.x];
    __syncthreads();
    const Source source = source_of(a, i, a.first_channel + channel);
    const bool fits = __syncthreads_and(threadIdx.x || row_fits(row[0], a, source));
    CudaView<kChannels> view(a, row[0], i, channel, planes, arena);
    if (fits)
      view.run(source.image, source.channel_stride, source.row_stride, source.pixel_stride);
    else
      view.fill_with_nothing();
  }
}

// ---- host ----

constexpr int64_t kArena = 12 << 10;      // floats, at most
constexpr int64_t kLeastArena = 1 << 10;  // floats
constexpr int64_t kTileRows = 16;         // rows that the resize has in shared memory at a time, where there is room
constexpr int64_t kLargeView = 1 << 12;   // pixels: from here on it is worth more threads
constexpr int kScratchBlocks = 2;         // blocks of a multiprocessor that have planes in scratch memory

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// How one view is launched.
struct Plan {
  int channels;           // of a block
  int groups;             // of channels
  int64_t planes, arena;  // floats of a block
  bool in_shared;
  int blocks;  // grid x

  explicit Plan(const AugmentApply& a) {
    channels = a.channels == 3 ? 3 : 1;
    groups = int(a.channels / channels);
    planes = 2 * channels * rounded_up(a.out_height * a.out_width, 4);
    arena = arena_of(a);
    // What static shared memory takes is below 4 KiB.
    const int64_t most = cuda::shared_memory_per_block() - 4096;
    in_shared = 4 * (planes + arena) <= most;
    blocks = int(a.n);
    if (!in_shared) {
      arena = std::min(arena, most / 4);
      blocks = int(std::min<int64_t>(a.n, int64_t(kScratchBlocks) * cuda::multiprocessors()));
    }
  }

  // Room for some rows of the resize and of the blur; of ragged images, whose size is not known here, the most.
  int64_t arena_of(const AugmentApply& a) const {
    if (a.offsets) return kArena;
    const int64_t taps_x = resize_taps(a.width, a.out_width, a.bicubic);
    const int64_t taps_y = resize_taps(a.height, a.out_height, a.bicubic);
    const int64_t rows = std::min(kTileRows, a.out_height);
    // Enlarging has taps of its own.
    const int64_t least = a.bicubic ? 4 : 2;
    const int64_t resize =
        a.out_width * (std::max(taps_x, least) + 1) + rows * (std::max(taps_y, least) + 1 + channels * (a.width + 8));
    const int64_t blur = channels * rows * a.out_width + 256;
    return rounded_up(std::clamp(std::max(resize, blur), kLeastArena, kArena), 4);
  }

  size_t scratch_bytes(const AugmentApply& a) const {
    if (in_shared) return 0;
    const int64_t at_a_time = std::min<int64_t>(groups, kLaunchChannels / channels);
    return size_t(4 * planes) * size_t(blocks) * size_t(at_a_time);
  }
};

template <int kChannels>
void launch_views(const Plan& plan, const AugmentBatch& batch, int groups, int threads, cuda::Stream stream) {
  const dim3 grid(unsigned(plan.blocks), unsigned(groups)), block { unsigned(threads) };
  if (plan.in_shared)
    cuda::launch(augment_images<kChannels, true>, grid, block, 4 * size_t(plan.arena + plan.planes), stream, batch);
  else
    cuda::launch(augment_images<kChannels, false>, grid, block, 4 * size_t(plan.arena), stream, batch);
}

}  // namespace

void augment_sample_cuda(const AugmentSample& problem, cuda::Stream stream) {
  if (problem.n == 0) return;
  const int64_t blocks = (problem.n + kSampleThreads - 1) / kSampleThreads;
  cuda::launch(augment_draw, dim3(unsigned(blocks)), dim3(kSampleThreads), 0, stream, problem);
}

size_t augment_apply_cuda_bytes(const AugmentApply& view) { return view.n ? Plan(view).scratch_bytes(view) : 0; }

void augment_apply_cuda(const AugmentApply& view, int64_t bytes, void* scratch, cuda::Stream stream) {
  if (view.n == 0) return;
  const Plan plan(view);
  AugmentBatch batch{};
  batch.images = static_cast<const uint8_t*>(view.images);
  batch.images_end = batch.images + bytes;
  batch.bytes = view.image_type == PixelType::kUint8;
  batch.image_stride = view.channels * view.height * view.width;
  batch.channel_stride = view.channels_last ? 1 : view.height * view.width;
  batch.pixel_stride = view.channels_last ? view.channels : 1;
  batch.row_stride = view.width * batch.pixel_stride;
  batch.offsets = view.offsets;
  batch.shapes = view.shapes;
  batch.n = int(view.n);
  batch.channels = int(view.channels);
  batch.height = int(view.height);
  batch.width = int(view.width);
  batch.params = view.params;
  batch.out_height = int(view.out_height);
  batch.out_width = int(view.out_width);
  batch.nearest = view.nearest;
  batch.bicubic = view.bicubic;
  batch.filled = view.fill != nullptr;
  batch.out = view.out;
  batch.out_type = view.out_type;
  batch.out_channel_stride = view.out_channels_last ? 1 : view.out_height * view.out_width;
  batch.out_pixel_stride = view.out_channels_last ? view.channels : 1;
  batch.planes = static_cast<float*>(scratch);
  batch.block_planes = plan.planes;
  batch.arena = int(plan.arena);
  const float bound = batch.bytes ? 255.f : 1.f;
  const int threads = view.out_height * view.out_width >= kLargeView ? 32 * kMostWarps : 256;
  // Channels beyond kLaunchChannels take further launches; where there are more than three, nothing links them.
  for (int64_t first = 0; first < view.channels; first += kLaunchChannels) {
    const int64_t some = std::min<int64_t>(kLaunchChannels, view.channels - first);
    batch.first_channel = int(first);
    for (int64_t c = 0; c < some; ++c) {
      batch.fill[c] = view.fill ? view.fill[first + c] : 0;
      batch.factor[c] = view.inverse_std[first + c] / bound;
      batch.add[c] = -view.mean[first + c] * view.inverse_std[first + c];
      batch.erase[c] = view.erase[first + c];
    }
    if (plan.channels == 3)
      launch_views<3>(plan, batch, 1, threads, stream);
    else
      launch_views<1>(plan, batch, int(some), threads, stream);
  }
}

}  // namespace fastcl
