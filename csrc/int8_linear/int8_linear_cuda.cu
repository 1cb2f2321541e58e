#include <algorithm>
#include <cstdint>

#include "common/cuda/scratch.h"
#include "int8_conv2d/int8_conv2d.h"
#include "int8_linear/int8_linear_cuda.h"
#include "int8_linear/int8_linear_cuda_rows.h"
#include "int8_linear/int8_linear_cuda_tiles.h"

namespace fastcl {
namespace {

// ---- host ----

constexpr int kLongRow = 1024;  // more, and all warps of a block share a row
constexpr int kPadBlocks = 512;

int64_t tiles_of(int64_t count, int size) { return (count + size - 1) / size; }

struct Plan {
  const CudaInt8Linear& problem;
  Cutter scratch;
  int rows;          // of planes
  bool pads_weight;  // its rows do not start at multiples of 16 bytes
  QuantizedRows quantized = {};
  int8_t* padded_weight = nullptr;

  Plan(const CudaInt8Linear& p, void* memory) : problem(p), scratch(memory) {
    const bool offsets = p.mode == Int8Mode::kAsymmetric || p.mode == Int8Mode::kStatic;
    rows = p.mode == Int8Mode::kInt16 ? (p.m + 7) / 8 * 16 : p.m;
    quantized.stride = static_cast<int>(int8_padded_k(p.k));
    quantized.values = scratch.array<int8_t>(size_t(rows) * quantized.stride);
    quantized.scale = scratch.array<float>(p.m);
    if (offsets) quantized.offset = scratch.array<int>(p.m);
    quantized.outlier_x = scratch.array<float>(size_t(p.m) * p.outliers);
    pads_weight = p.k != quantized.stride || reinterpret_cast<uintptr_t>(p.weight) % 16 != 0;
    if (pads_weight) padded_weight = scratch.array<int8_t>(size_t(p.n) * quantized.stride);
  }

  template <class Rows>
  void quantize(const Rows& from, cuda::Stream stream) const {
    const CudaInt8Linear& p = problem;
    const bool block_for_row = p.k > kLongRow;
    const int row_blocks = static_cast<int>(block_for_row ? p.m : tiles_of(p.m, kRowsThreads / 32));
    const int pad_blocks =
        pads_weight ? static_cast<int>(std::min<int64_t>(kPadBlocks, tiles_of(p.n, kRowsThreads / 32))) : 0;
    const QuantizeRows<Rows> parameters = {from,          p.m,
                                           p.k,           p.mode,
                                           p.x_range,     matrix(p.x_multiplier, FloatType::kFloat32, p.k),
                                           p.outliers,    p.outlier_columns,
                                           quantized,     block_for_row,
                                           row_blocks,    p.weight,
                                           padded_weight, p.n};
    cuda::launch(quantize_rows<Rows>, dim3(row_blocks + pad_blocks), dim3(kRowsThreads), 0, stream, parameters);
  }

  Int8Product product() const {
    const CudaInt8Linear& p = problem;
    return {quantized.values,
            pads_weight ? padded_weight : p.weight,
            rows,
            quantized.stride,
            p.m,
            p.n,
            0,
            p.mode,
            quantized.scale,
            quantized.offset,
            p.weight_scale,
            p.bias,
            p.outliers,
            quantized.outlier_x,
            p.outlier_weight,
            p.activation,
            matrix(p.y, p.type, p.n)};
  }

  template <int kRowFragments, int kColFragments, bool kOffsets>
  bool tiles(cuda::Stream stream, bool at_any_rate) const {
    using Tile = Int8Tile<kRowFragments, kColFragments>;
    Int8Product p = product();
    p.row_tiles = static_cast<int>(tiles_of(rows, Tile::kRows));
    const int64_t count = p.row_tiles * tiles_of(p.n, Tile::kCols);
    if (!at_any_rate && count < cuda::multiprocessors()) return false;
    cuda::launch(int8_tiles<kRowFragments, kColFragments, kOffsets>, dim3(static_cast<unsigned>(count)),
                 dim3(kInt8Threads), Tile::kSharedBytes, stream, p);
    return true;
  }

  template <bool kOffsets>
  void multiply(cuda::Stream stream) const {
    if (rows <= kFewRows)
      cuda::launch(int8_few_rows<kOffsets>, dim3(static_cast<unsigned>(tiles_of(problem.n, kFewCols))),
                   dim3(kFewThreads), 0, stream, product());
    else if (!tiles<4, 8, kOffsets>(stream, false))  // too few large tiles to keep the device busy
      tiles<2, 4, kOffsets>(stream, true);
  }
};

}  // namespace

size_t cuda_int8_linear_bytes(const CudaInt8Linear& problem) { return Plan(problem, nullptr).scratch.used(); }

void cuda_int8_linear(const CudaInt8Linear& p, void* scratch, cuda::Stream stream) {
  const Plan plan(p, scratch);
  if (p.patches) {
    const Int8Patches& g = *p.patches;
    const auto whole = [](int64_t value) { return static_cast<int>(value); };
    plan.quantize(
        RowsOfPatches{matrix(p.x, p.type, whole(g.channels)), p.k, whole(g.height), whole(g.width), whole(g.channels),
                      whole(g.out_height), whole(g.out_width), whole(g.kernel_width), whole(g.stride_y),
                      whole(g.stride_x), whole(g.dilation_y), whole(g.dilation_x), whole(g.pad_top), whole(g.pad_left)},
        stream);
  } else {
    plan.quantize(RowsAsTheyStand{matrix(p.x, p.type, p.k)}, stream);
  }
  if (p.mode == Int8Mode::kDynamic)
    plan.multiply<false>(stream);
  else
    plan.multiply<true>(stream);
}

}  // namespace fastcl
