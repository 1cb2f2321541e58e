// What is done to every pixel, as templates over the vectors of an instruction set (V). augment_<isa>.cpp instantiate
// them; augment_cpu.cpp calls them by the table AugmentRows and does all else: threads, order, memory, parameters.
//
// A plane is one channel's pixels, row after row. Where n is a count of values that are read or written, the functions
// round it up to kRowStep, unless they say "exactly": planes and rows of scratch end with as much room.
#pragma once

#include <cstdint>

#include "augment/augment.h"
#include "common/float_types.h"
#include "common/simd.h"

namespace fastcl {

constexpr int64_t kRowStep = 16;       // a multiple of every instruction set's lanes
constexpr int kBlurRows = 4;           // output rows that are blurred together
constexpr int64_t kWarpPixels = 1024;  // whose places in the input are looked up together
constexpr int kFewTaps = 8;            // where a row is made of more, those are blended before it is resized across

constexpr int64_t row_steps(int64_t n) { return (n + kRowStep - 1) / kRowStep * kRowStep; }

// One axis of an antialiased resize: out[i] = sum over t of weight[t * stride + i] in[first[i] + t]. AugmentRows::place
// cuts it into vectors and counts `first` from each one's base.
struct ResizeTaps {
  int64_t n;       // outputs
  int64_t stride;  // row_steps(n)
  int64_t taps;
  int32_t* first;  // [stride]
  float* weight;   // [taps, stride]
  int32_t* base;   // [stride / lanes]
  bool near;       // whether each vector's taps lie within two vectors from its base on
  int64_t reach;   // what is read of a row then, from its begin on
};

// Rows of a crop that are resized across, on their way to be blended to rows of the output.
struct ResizedRows {
  ResizeTaps across, down;
  bool clamps;  // to 0 and bound
  float bound;
  float* rows;     // scratch, [places, channels of the run, across.stride]; row y of the crop at place y % places
  int64_t places;  // a power of two; as many as a ColorRun reads
  int64_t* held;   // [2]: from which row to which they are there
};

// A crop on its way to the output's size.
template <class Pixel>
struct Resample : ResizedRows {
  const Pixel* in;               // the crop's first pixel
  const Pixel* end;              // of the memory it lies in
  int64_t pitch, channel_pitch;  // from row to row, from channel to channel
  int64_t step, width;           // from a pixel to its right neighbour; pixels in a row
  // Scratch; row_pitch is 2 kRowStep more than row_steps(width).
  int64_t row_pitch;
  Pixel* copies;  // [kFewTaps, 3, row_pitch]: rows of the crop
  float* lines;   // [3, row_pitch]: a row of the crop, resized down
  float* mixed;   // [3 width]: likewise, where the channels come last
};

// Rows of a crop or of planes, through some of ColorOp, one after another, to an output.
struct ColorRun {
  int64_t channels;                // 1 or 3; of one, only brightness and contrast do anything
  const Resample<uint8_t>* bytes;  // where the pixels come from
  const Resample<float>* floats;   // likewise
  const float* plane[3];           // likewise, if both are null
  int64_t begin, end, n;           // rows and pixels in a row; those of planes are one row
  int op[4];
  int ops;
  float brightness, contrast, contrast_add, saturation, hue;  // contrast: v * contrast + contrast_add
  float bound;                                                // the largest value
  bool gray;                                                  // comes last
  bool sum;                                                   // whether the sum of the gray is wanted
  float* out[3];  // row after row exactly value * factor[c] + add[c]; may be `plane`
  float factor[3], add[3];
  bool stream;  // out: past the caches
};

// A warp of planes, normalised where it is the last stage.
struct Warp {
  double map[9];  // AugmentParams::map
  int64_t width, height, channels;
  bool nearest;       // else bilinear
  const float* fill;  // [channels]; null: none
  const float* in;    // [channels, plane]
  int64_t plane;
  float* out;  // [channels, out_plane]
  int64_t out_plane;
  const float *mean, *inverse_std;  // [channels], of values from 0 to 1; null: values stay as they are
  float bound;                      // the largest value

  FASTCL_INLINE float factor_of(int64_t c) const { return mean ? inverse_std[c] / bound : 1; }
  FASTCL_INLINE float add_of(int64_t c) const { return mean ? -mean[c] * inverse_std[c] : 0; }
};

// A separable blur of a plane, reflected at its borders; out = blurred * factor + add.
struct Blur {
  const float* in;
  int64_t height, width;
  const float *weight_x, *weight_y;  // [2 reach + 1]; weight_y[1 - kBlurRows ...] and as much behind can be read
  int64_t reach_x, reach_y;
  float factor, add;
  bool stream;         // past the caches
  float* out;          // [rows, width]
  const float** rows;  // scratch, [2 reach_y + rows]
  float* padded;  // scratch, [rows, a multiple of kBlurRows, padded_pitch], 64-byte aligned; reaches before and behind
                  // a row
  int64_t padded_pitch;
};

struct AugmentRows {
  // Rows of parameters of the samples from begin to end; null where a vector is no faster than one sample at a time.
  void (*draw)(const AugmentSample& problem, int64_t begin, int64_t end);
  // Antialiased resampling along one axis, as torchvision and PIL: a filter stretched by max(in / out, 1). All taps lie
  // inside; those that the filter does not reach weigh 0. Outputs beyond n repeat the last. Positions are double, what
  // is counted from them float. Sets first and weight.
  void (*resize_taps_of)(int64_t in, bool flip, bool cubic, ResizeTaps* taps);
  // Cuts them into vectors: sets base, near and reach, and counts `first` from each vector's base.
  void (*place)(ResizeTaps* taps);
  // The sum of the gray, or 0.
  double (*color)(const ColorRun& run);
  // Exactly the rows of the output from begin to end.
  void (*warp)(const Warp& warp, int64_t begin, int64_t end);
  // bound - v where v is not below the threshold
  void (*solarize)(float* v, int64_t n, float threshold, float bound);
  // Exactly so many rows from y on, into run.out.
  void (*blur)(const Blur& run, int64_t y, int64_t rows);
  // Exactly out[i] = in[i] * factor + add, n values.
  void (*normalize)(const float* in, int64_t n, float factor, float add, bool stream, float* out);
  // Exactly n values, to nearest even.
  void (*to_bfloat16)(const float* in, int64_t n, uint16_t* out);
  void (*to_float16)(const float* in, int64_t n, uint16_t* out);
  // To be called before another thread may read what was streamed.
  void (*stream_end)();
};

// Null where they were not compiled or this processor cannot run them.
const AugmentRows* augment_rows_portable();
const AugmentRows* augment_rows_avx2();
const AugmentRows* augment_rows_avx512();

}  // namespace fastcl
