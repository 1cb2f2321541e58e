// What is done to every pixel, as templates over the vectors of an instruction set (V). augment_<isa>.cpp instantiate
// them; augment_cpu.cpp calls them by the table AugmentRows and does all else: threads, order, memory, parameters.
//
// A plane is one channel's pixels, row after row. Where n is a count of values that are read or written, the functions
// round it up to kRowStep, unless they say "exactly": planes and rows of scratch end with as much room.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace fastcl {

constexpr int64_t kRowStep = 16;  // a multiple of every instruction set's lanes
constexpr int kBlurRows = 4;      // output rows that blur_y makes at a time

constexpr int64_t row_steps(int64_t n) { return (n + kRowStep - 1) / kRowStep * kRowStep; }

// One axis of an antialiased resize: out[i] = sum over t of weight[t * stride + i] in[first[i] + t].
struct ResizeTaps {
  int64_t n;       // outputs
  int64_t stride;  // row_steps(n)
  int64_t taps;
  const int32_t* first;  // [stride]
  const float* weight;   // [taps, stride]
};

// out[r, i] = sum over t of weight[t * weight_stride] in[r * run_pitch + t * pitch + i].
template <class Pixel>
struct BlendRows {
  const Pixel* in;
  int64_t pitch, run_pitch;
  const float* weight;
  int64_t weight_stride, taps;
  int64_t runs, n;
  float* out;
  int64_t out_pitch;
};

// One to three planes that are changed together.
struct Planes {
  float* channel[3];
  int64_t channels, n;
};

struct AugmentRows {
  // One row of each run by its taps in y, exactly run.n values, which are kRowStep or more.
  void (*blend_bytes)(const BlendRows<uint8_t>& run);
  void (*blend_floats)(const BlendRows<float>& run);
  // One row of each channel by its taps in x; may read 2 kRowStep values beyond the last tap.
  void (*resize)(const ResizeTaps& taps, const float* in, int64_t in_pitch, int64_t channels, float* out,
                 int64_t out_pitch);
  // clamp(v * factor + add)
  void (*scale)(const Planes& p, float factor, float add, float bound);
  void (*saturate)(const Planes& p, float factor, float bound);
  void (*shift_hue)(const Planes& p, float turns);
  void (*to_gray)(const Planes& p);
  // bound - v where v is not below the threshold
  void (*solarize)(float* v, int64_t n, float threshold, float bound);
  // The sum of the gray of exactly n pixels.
  double (*gray_sum)(const Planes& p);
  // out[o][x] = sum over j of weight[j - o] rows[j][x] for each of kBlurRows; weight[1 - kBlurRows ...] can be read.
  void (*blur_y)(const float* const* rows, int64_t count, const float* weight, int64_t n, float* const* out);
  // Exactly out[x] = (sum over t of weight[t] in[x + t]) * factor + add, n values; `stream`: past the caches.
  void (*blur_x)(const float* in, const float* weight, int64_t taps, int64_t n, float factor, float add, bool stream,
                 float* out);
  // Exactly out[i] = in[i] * factor + add, n values.
  void (*normalize)(const float* in, int64_t n, float factor, float add, bool stream, float* out);
  // To be called before another thread may read what was streamed.
  void (*stream_end)();
};

// Null where they were not compiled or this processor cannot run them.
const AugmentRows* augment_rows_portable();
const AugmentRows* augment_rows_avx2();
const AugmentRows* augment_rows_avx512();

}  // namespace fastcl
