#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "common/float_types.h"
#include "common/parallel.h"
#include "common/portable.h"

namespace fastcl {
namespace {

constexpr float kLuma[] = {0.2989f, 0.587f, 0.114f};

// ------------------------------------------------------------------------------------------------------ rows
// What is done to every pixel, a row at a time: plain loops over contiguous floats.

// out = weight0 * in0 + weight1 * in1, added to what is there or not
template <class Pixel>
FASTCL_INLINE void blend_loop(const Pixel* in0, const Pixel* in1, float weight0, float weight1, bool add, int64_t n,
                              float* __restrict out) {
  if (add)
    for (int64_t i = 0; i < n; ++i) out[i] += weight0 * float(in0[i]) + weight1 * float(in1[i]);
  else
    for (int64_t i = 0; i < n; ++i) out[i] = weight0 * float(in0[i]) + weight1 * float(in1[i]);
}
FASTCL_MULTIVERSION void blend(const uint8_t* in0, const uint8_t* in1, float weight0, float weight1, bool add,
                               int64_t n, float* __restrict out) {
  blend_loop(in0, in1, weight0, weight1, add, n, out);
}
FASTCL_MULTIVERSION void blend(const float* in0, const float* in1, float weight0, float weight1, bool add, int64_t n,
                               float* __restrict out) {
  blend_loop(in0, in1, weight0, weight1, add, n, out);
}

// out[i] = sum over t of weight[t * n + i] in[first[i] + t * step]
FASTCL_MULTIVERSION void gather_taps(const float* in, const int32_t* first, const float* weight, int64_t taps,
                                     int64_t step, int64_t n, float* __restrict out) {
  if (taps == 2) {  // enlarging
    const float* next = in + step;
    for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * in[first[i]] + weight[n + i] * next[first[i]];
    return;
  }
  for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * in[first[i]];
  for (int64_t t = 1; t < taps; ++t) {
    in += step;
    weight += n;
    for (int64_t i = 0; i < n; ++i) out[i] += weight[i] * in[first[i]];
  }
}

struct Row {
  float* channel[3];  // [n] each; a gray image has one
  int64_t channels, n;
};

FASTCL_INLINE float clamp(float value, float bound) {
  value = value > 0.f ? value : 0.f;
  return value < bound ? value : bound;
}

// v = clamp(v * factor + add)
FASTCL_MULTIVERSION void scale_row(float* v, int64_t n, float factor, float add, float bound) {
  for (int64_t i = 0; i < n; ++i) v[i] = clamp(v[i] * factor + add, bound);
}

FASTCL_MULTIVERSION void saturate_row(float* __restrict r, float* __restrict g, float* __restrict b, int64_t n,
                                      float factor, float bound) {
  for (int64_t i = 0; i < n; ++i) {
    const float gray = (kLuma[0] * r[i] + kLuma[1] * g[i] + kLuma[2] * b[i]) * (1 - factor);
    r[i] = clamp(r[i] * factor + gray, bound);
    g[i] = clamp(g[i] * factor + gray, bound);
    b[i] = clamp(b[i] * factor + gray, bound);
  }
}

// HSV without a division: all of hue's arithmetic is done times the chroma. A channel is
// most - chroma * clamp(2 - |k - 2|, 0, 1), k = its place on the circle of six, and k * chroma needs no quotient.
FASTCL_MULTIVERSION void shift_hue_row(float* __restrict r, float* __restrict g, float* __restrict b, int64_t n,
                                       float shift) {
  const float turn = shift < 0 ? 6 * shift + 6 : 6 * shift;  // in [0, 6)
  for (int64_t i = 0; i < n; ++i) {
    const float red = r[i], green = g[i], blue = b[i];
    const float high = red > green ? red : green, low = red < green ? red : green;
    const float most = high > blue ? high : blue, least = low < blue ? low : blue, chroma = most - least;
    float hue = most == green ? 2 * chroma + (blue - red) : 4 * chroma + (red - green);
    hue = (most == red ? green - blue : hue) + turn * chroma;  // in [-1, 11) chroma
    const float circle = 6 * chroma;
    const float offset[] = {5 * chroma, 3 * chroma, chroma};
    float out[3];
    for (int c = 0; c < 3; ++c) {
      float k = hue + offset[c];  // in [0, 16) chroma
      k = k >= circle ? k - circle : k;
      k = k >= circle ? k - circle : k;
      const float edge = 2 * chroma - std::fabs(k - 2 * chroma);
      out[c] = most - (edge > 0 ? (edge < chroma ? edge : chroma) : 0.f);
    }
    r[i] = out[0];
    g[i] = out[1];
    b[i] = out[2];
  }
}

FASTCL_MULTIVERSION void gray_row(float* __restrict r, float* __restrict g, float* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) r[i] = g[i] = b[i] = kLuma[0] * r[i] + kLuma[1] * g[i] + kLuma[2] * b[i];
}

// The sum of the row's gray; lanes, so that the compiler may vectorise.
FASTCL_MULTIVERSION double gray_sum(const float* r, const float* g, const float* b, int64_t n) {
  constexpr int kLanes = 16;
  float lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lane[l] += kLuma[0] * r[i + l] + kLuma[1] * g[i + l] + kLuma[2] * b[i + l];
  double sum = 0;
  for (; i < n; ++i) sum += kLuma[0] * r[i] + kLuma[1] * g[i] + kLuma[2] * b[i];
  for (float part : lane) sum += part;
  return sum;
}

FASTCL_MULTIVERSION void normalize_row(const float* in, int64_t n, float scale, float mean, float inverse_std,
                                       float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = (in[i] * scale - mean) * inverse_std;
}

FASTCL_MULTIVERSION void quantize_row(const float* in, int64_t n, float scale, float offset, uint8_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = uint8_t(int32_t(clamp(in[i] * scale + offset, 255.f)));
}

FASTCL_MULTIVERSION void add_rows(const float* a, const float* b, float weight, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] += weight * (a[i] + b[i]);
}

FASTCL_MULTIVERSION void scale_copy(const float* in, float weight, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = weight * in[i];
}

// Where the pixels of the output's row `y` come from; all counted from the images' centres. In double and in the order
// of the reference's operations, so that the nearest pixel is the reference's.
FASTCL_MULTIVERSION void source_positions(const double* m, double left, double y, int64_t n, double middle_x,
                                          double middle_y, double* __restrict source_x, double* __restrict source_y) {
  const bool affine = m[6] == 0 && m[7] == 0 && m[8] == 1;  // a division by 1 changes no bit
  for (int64_t i = 0; i < n; ++i) {
    const double x = double(int32_t(i)) + left;
    source_x[i] = m[0] * x + m[1] * y + m[2];
    source_y[i] = m[3] * x + m[4] * y + m[5];
  }
  for (int64_t i = 0; i < n && !affine; ++i) {
    const double depth = m[6] * (double(int32_t(i)) + left) + m[7] * y + m[8];
    source_x[i] /= depth;
    source_y[i] /= depth;
  }
  for (int64_t i = 0; i < n; ++i) {
    source_x[i] += middle_x;
    source_y[i] += middle_y;
  }
}

FASTCL_MULTIVERSION void round_to_even(double* v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = std::rint(v[i]);
}

// ---------------------------------------------------------------------------------------------------- tables

// Antialiased bilinear resampling along one axis, as torchvision and PIL: a triangle of half width max(in / out, 1).
struct Axis {
  int64_t taps = 0;
  std::vector<int32_t> first;  // [out], the first source sample, times `step`
  std::vector<float> weight;   // [taps, out]

  void build(int64_t in, int64_t out, bool flip, int64_t step) {
    const double scale = double(in) / double(out), support = std::max(scale, 1.0);
    const auto bounds = [&](int64_t i, double* center) {
      *center = scale * (double(i) + 0.5);
      const int64_t begin = std::max<int64_t>(int64_t(*center - support + 0.5), 0);
      return std::pair(begin, std::min<int64_t>(int64_t(*center + support + 0.5), in));
    };
    // A crop of the output's size is copied: each second tap weighs nothing.
    taps = 1;
    double center;
    if (in != out)
      for (int64_t i = 0; i < out; ++i) {
        const auto [begin, end] = bounds(i, &center);
        taps = std::max(taps, end - begin);
      }
    first.resize(size_t(out));
    weight.assign(size_t(taps * out), 0.f);
    for (int64_t i = 0; i < out; ++i) {
      const int64_t at = flip ? out - 1 - i : i;
      if (in == out) {
        first[size_t(at)] = int32_t(i * step);
        weight[size_t(at)] = 1;
        continue;
      }
      const auto [begin, end] = bounds(i, &center);
      const int64_t start = std::min(begin, in - taps);  // all taps lie inside; those that were not asked for weigh 0
      first[size_t(at)] = int32_t(start * step);
      double sum = 0;
      for (int64_t j = begin; j < end; ++j) sum += std::max(0.0, 1 - std::fabs((double(j) - center + 0.5) / support));
      for (int64_t j = begin; j < end; ++j) {
        const double w = std::max(0.0, 1 - std::fabs((double(j) - center + 0.5) / support));
        weight[size_t((j - start) * out + at)] = float(w / sum);
      }
    }
  }
};

// The half of a Gaussian kernel from the middle out; taps that are below float's precision are left out.
void gaussian_taps(int64_t radius, double sigma, std::vector<float>* half) {
  const auto tap = [&](int64_t d) { return std::exp(-double(d * d) / (2 * sigma * sigma)); };
  double sum = 1;
  for (int64_t d = 1; d <= radius; ++d) sum += 2 * tap(d);
  half->clear();
  for (int64_t d = 0; d <= radius && (d == 0 || tap(d) > 1e-9); ++d) half->push_back(float(tap(d) / sum));
}

// ---------------------------------------------------------------------------------------------------- stages

// One thread's buffers: they grow to the largest image seen, so the steady state allocates nothing.
struct Scratch {
  std::vector<float> image, warped;  // [channels, out_height, out_width]
  std::vector<float> source_row;  // one output row before the horizontal pass: [channels, width] or [width, channels]
  std::vector<double> position;   // of one output row's sources: x, then y
  std::vector<float> padded;      // one row with its reflected ends
  std::vector<float> line;        // one output row
  std::vector<float> half_x, half_y;
  Axis axis_x, axis_y;
};

// One image on its way through the stages.
class View {
 public:
  View(const AugmentApply& a, const AugmentParams& p, int64_t number, Scratch* s)
      : a_(a), p_(p), number_(number), s_(*s), height_(a.out_height), width_(a.out_width), plane_(height_ * width_) {
    bound_ = a.image_type == PixelType::kUint8 ? 255.f : 1.f;
  }

  void run() {
    s_.image.resize(size_t(a_.channels * plane_));
    if (a_.image_type == PixelType::kUint8)
      crop_resize_flip<uint8_t>();
    else
      crop_resize_flip<float>();
    if (!identity_map()) warp();
    color();
    write();
  }

 private:
  float* row(int64_t channel, int64_t y) { return s_.image.data() + channel * plane_ + y * width_; }

  template <class Pixel>
  void crop_resize_flip() {
    const int64_t crop_height = int64_t(p_.crop_height), crop_width = int64_t(p_.crop_width), channels = a_.channels;
    const int64_t step = a_.channels_last ? channels : 1;  // from a pixel to its right neighbour
    s_.axis_x.build(crop_width, width_, p_.hflip != 0, step);
    s_.axis_y.build(crop_height, height_, p_.vflip != 0, 1);
    const Pixel* image = static_cast<const Pixel*>(a_.images) + number_ * channels * a_.height * a_.width;
    const Pixel* crop = image + (int64_t(p_.crop_top) * a_.width + int64_t(p_.crop_left)) * step;
    // A crop's row is one run of memory for each channel, or one for all where the channels come last.
    const int64_t runs = a_.channels_last ? 1 : channels, run = a_.channels_last ? crop_width * channels : crop_width;
    const int64_t run_pitch = a_.height * a_.width, row_pitch = a_.width * step;
    s_.source_row.resize(size_t(runs * run));
    for (int64_t y = 0; y < height_; ++y) {
      for (int64_t t = 0; t < s_.axis_y.taps; t += 2) {
        const bool pair = t + 1 < s_.axis_y.taps;
        const float weight0 = s_.axis_y.weight[size_t(t * height_ + y)];
        const float weight1 = pair ? s_.axis_y.weight[size_t((t + 1) * height_ + y)] : 0.f;
        const Pixel* in = crop + (s_.axis_y.first[size_t(y)] + t) * row_pitch;
        for (int64_t c = 0; c < runs; ++c)
          blend(in + c * run_pitch, in + c * run_pitch + pair * row_pitch, weight0, weight1, t > 0, run,
                s_.source_row.data() + c * run);
      }
      for (int64_t c = 0; c < channels; ++c)
        gather_taps(s_.source_row.data() + (a_.channels_last ? c : c * run), s_.axis_x.first.data(),
                    s_.axis_x.weight.data(), s_.axis_x.taps, step, width_, row(c, y));
    }
  }

  bool identity_map() const {
    for (int i = 0; i < 9; ++i)
      if (p_.map[i] != (i % 4 == 0 ? 1.f : 0.f)) return false;
    return true;
  }

  void warp() {
    s_.warped.resize(s_.image.size());
    s_.position.resize(size_t(2 * width_));
    double *source_x = s_.position.data(), *source_y = source_x + width_;
    const double middle_x = double(width_ - 1) / 2, middle_y = double(height_ - 1) / 2;
    double m[9];
    std::copy(p_.map, p_.map + 9, m);
    for (int64_t y = 0; y < height_; ++y) {
      source_positions(m, -middle_x, double(y) - middle_y, width_, middle_x, middle_y, source_x, source_y);
      if (a_.nearest) round_to_even(source_x, 2 * width_);
      for (int64_t x = 0; x < width_; ++x)
        if (a_.nearest)
          nearest_pixel(source_x[x], source_y[x], y * width_ + x);
        else
          bilinear_pixel(source_x[x], source_y[x], y * width_ + x);
    }
    std::swap(s_.image, s_.warped);
  }

  // Written so that NaN lies outside.
  bool inside(double x, double y) const {
    return x >= 0 && x <= double(width_ - 1) && y >= 0 && y <= double(height_ - 1);
  }

  void nearest_pixel(double x, double y, int64_t at) {
    const bool in = inside(x, y);
    const int64_t from = in ? int64_t(y) * width_ + int64_t(x) : 0;
    for (int64_t c = 0; c < a_.channels; ++c)
      s_.warped[size_t(c * plane_ + at)] = in ? s_.image[size_t(c * plane_ + from)] : a_.fill ? a_.fill[c] : 0.f;
  }

  void bilinear_pixel(double x, double y, int64_t at) {
    const double left = std::floor(x), upper = std::floor(y);
    const float right = float(x - left), lower = float(y - upper);  // weights of the far pixels
    int64_t from[4];
    float weight[4], mask = 0;
    for (int k = 0; k < 4; ++k) {
      const double px = left + k % 2, py = upper + k / 2;
      const bool in = inside(px, py);
      from[k] = in ? int64_t(py) * width_ + int64_t(px) : 0;
      weight[k] = in ? (k % 2 ? right : 1 - right) * (k / 2 ? lower : 1 - lower) : 0.f;
      mask += weight[k];
    }
    for (int64_t c = 0; c < a_.channels; ++c) {
      const float* in = s_.image.data() + c * plane_;
      float value = 0;
      for (int k = 0; k < 4; ++k) value += weight[k] * in[from[k]];
      if (a_.fill) value = (value - a_.fill[c]) * mask + a_.fill[c];
      s_.warped[size_t(c * plane_ + at)] = value;
    }
  }

  // Sweeps over the image row by row. Contrast needs the mean gray of what is before it, so it starts a new sweep, and
  // the sweep before it sums that up.
  void color() {
    int place = 0;
    bool contrast = false;
    double gray = 0;
    do {
      int end = place;
      while (end < 4 && int(p_.color_op[end]) != kContrast) ++end;
      const bool sum = end < 4, last = !sum;
      double next_gray = 0;
      bool any = contrast || sum || (last && p_.grayscale != 0);
      for (int i = place; i < end; ++i) any |= p_.color_op[i] != 0;
      for (int64_t y = 0; any && y < height_; ++y) {
        Row r{{row(0, y), nullptr, nullptr}, a_.channels, width_};
        for (int64_t c = 1; c < std::min<int64_t>(a_.channels, 3); ++c) r.channel[c] = row(c, y);
        if (contrast)
          for (int64_t c = 0; c < a_.channels; ++c)
            scale_row(r.channel[c], width_, p_.contrast, float((1 - p_.contrast) * (gray / double(plane_))), bound_);
        for (int i = place; i < end; ++i) color_op(int(p_.color_op[i]), r);
        if (last && p_.grayscale != 0 && a_.channels == 3) gray_row(r.channel[0], r.channel[1], r.channel[2], width_);
        if (sum) next_gray += row_gray(r);
      }
      contrast = sum;
      gray = next_gray;
      place = end + 1;
    } while (contrast || place < 4);
  }

  static double row_gray(const Row& r) {
    if (r.channels == 3) return gray_sum(r.channel[0], r.channel[1], r.channel[2], r.n);
    double sum = 0;
    for (int64_t i = 0; i < r.n; ++i) sum += r.channel[0][i];
    return sum;
  }

  void color_op(int code, const Row& r) {
    if (code == kBrightness)
      for (int64_t c = 0; c < r.channels; ++c) scale_row(r.channel[c], r.n, p_.brightness, 0, bound_);
    if (r.channels != 3) return;
    if (code == kSaturation) saturate_row(r.channel[0], r.channel[1], r.channel[2], r.n, p_.saturation, bound_);
    if (code == kHue) shift_hue_row(r.channel[0], r.channel[1], r.channel[2], r.n, p_.hue);
  }

  // Blur, normalise and store, row by row.
  void write() {
    const bool blur = p_.blur_sigma > 0;
    if (blur) {
      gaussian_taps(int64_t(p_.blur_radius_x), p_.blur_sigma, &s_.half_x);
      gaussian_taps(int64_t(p_.blur_radius_y), p_.blur_sigma, &s_.half_y);
    }
    s_.line.resize(size_t(width_));
    for (int64_t c = 0; c < a_.channels; ++c)
      for (int64_t y = 0; y < height_; ++y) store(c, y, blur ? blurred_row(c, y) : row(c, y), blur);
  }

  const float* blurred_row(int64_t c, int64_t y) {
    const int64_t reach_y = int64_t(s_.half_y.size()) - 1, reach_x = int64_t(s_.half_x.size()) - 1;
    const auto reflect = [](int64_t at, int64_t n) { return at < 0 ? -at : at >= n ? 2 * (n - 1) - at : at; };
    s_.padded.resize(size_t(width_ + 2 * reach_x));
    float* middle = s_.padded.data() + reach_x;
    scale_copy(row(c, y), s_.half_y[0], width_, middle);
    for (int64_t d = 1; d <= reach_y; ++d)
      add_rows(row(c, reflect(y - d, height_)), row(c, reflect(y + d, height_)), s_.half_y[size_t(d)], width_, middle);
    for (int64_t d = 1; d <= reach_x; ++d) {
      middle[-d] = middle[reflect(-d, width_)];
      middle[width_ - 1 + d] = middle[reflect(width_ - 1 + d, width_)];
    }
    scale_copy(middle, s_.half_x[0], width_, s_.line.data());
    for (int64_t d = 1; d <= reach_x; ++d)
      add_rows(middle - d, middle + d, s_.half_x[size_t(d)], width_, s_.line.data());
    return s_.line.data();
  }

  void store(int64_t c, int64_t y, const float* values, bool blurred) {
    const int64_t at = ((number_ * a_.channels + c) * height_ + y) * width_;
    if (a_.out_type == PixelType::kUint8) {
      // As torchvision's last op: a colour op cuts off (just above float's noise), the others round.
      bool colored = p_.grayscale != 0;
      for (float code : p_.color_op) colored |= code != 0;
      const float offset = colored && !blurred ? 0x1p-10f : 0.5f;
      quantize_row(values, width_, 255 / bound_, offset, static_cast<uint8_t*>(a_.out) + at);
      return;
    }
    float* line = a_.out_type == PixelType::kFloat32 ? static_cast<float*>(a_.out) + at : s_.line.data();
    normalize_row(values, width_, 1 / bound_, a_.mean[c], a_.inverse_std[c], line);
    if (a_.out_type == PixelType::kBFloat16) store_floats(line, width_, FloatType::kBFloat16, at, a_.out);
    if (a_.out_type == PixelType::kFloat16) store_floats(line, width_, FloatType::kFloat16, at, a_.out);
  }

  const AugmentApply& a_;
  const AugmentParams& p_;
  const int64_t number_;
  Scratch& s_;
  const int64_t height_, width_, plane_;
  float bound_;  // the largest value: 255 or 1, as the images'
};

}  // namespace

void augment_sample(const AugmentSample& problem) {
  parallel_for(problem.n, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      problem.params[i] = draw_params(problem.recipe, problem.stream, problem.index[i]);
  });
}

void augment_apply(const AugmentApply& problem) {
  parallel_for(problem.n, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    for (int64_t i = begin; i < end; ++i) View(problem, problem.params[i], i, &scratch).run();
  });
}

}  // namespace fastcl
