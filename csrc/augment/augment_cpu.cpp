#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "augment/augment_plain.h"
#include "augment/augment_rows.h"
#include "augment/augment_tables.h"
#include "common/buffer.h"
#include "common/float_types.h"
#include "common/parallel.h"
#include "common/portable.h"

namespace fastcl {
namespace {

const AugmentRows& augment_rows() {
  static const AugmentRows& rows = *[] {
    for (const auto rows_of : {augment_rows_avx512, augment_rows_avx2})
      if (const AugmentRows* found = rows_of()) return found;
    return augment_rows_portable();
  }();
  return rows;
}

constexpr int64_t kStreamBytes = 16 << 20;     // float32 outputs of this size or more are written past the caches
constexpr int64_t kBand = 1024;                // pixels that go through the stages together: they stay in L1
constexpr int64_t kRowThreadPixels = 1 << 14;  // fewer pixels of a view are not worth several threads

// A band is so many rows of the output: about kBand pixels, a multiple of kRowStep.
int64_t band_rows(int64_t width) {
  int64_t rows = 1;
  while (rows * width % kRowStep != 0) rows *= 2;
  return rows * std::max<int64_t>(1, kBand / (rows * width));
}
int64_t band_pixels(const AugmentApply& a) { return std::min(band_rows(a.out_width), a.out_height) * a.out_width; }

// Rows that are blurred at a time: of short rows more, that none waits for what has just been stored.
int64_t blur_group(int64_t width) { return width <= 128 ? 4 * kBlurRows : kBlurRows; }

// Places for so many rows of a crop.
int64_t places_of(int64_t rows) {
  int64_t places = 1;
  while (places < rows) places *= 2;
  return places;
}

// What one image's view needs as a whole.
struct Planes {
  explicit Planes(const AugmentApply& a)
      : plane(row_steps(a.out_height * a.out_width) + kRowStep),
        height(a.height),
        image(a.channels * plane),
        sums(a.out_height),
        axis_x(a.width, a.out_width, a.bicubic),
        axis_y(a.height, a.out_height, a.bicubic),
        kernel_x(a.out_width),
        kernel_y(a.out_height) {}

  // Memory for a second image, made when it is asked for first.
  float* other(int64_t channels) {
    if (!has_other) spare = Buffer<float>(channels * plane);
    has_other = true;
    return spare.get();
  }

  // Memory for a finished view.
  float* finished(int64_t values) {
    if (!has_joined) joined = Buffer<float>(values);
    has_joined = true;
    return joined.get();
  }

  int64_t plane;          // from one channel of `image` to the next
  int64_t height;         // of the highest image
  Buffer<float> image;    // [channels, plane]
  Buffer<float> spare;    // likewise
  Buffer<double> sums;    // of the gray of each band
  Buffer<float> between;  // bytes through the cubic filter: [channels, crop_height, width], resized across
  Buffer<float> joined;   // a view whose channels are to come last
  bool has_other = false, has_joined = false;
  Axis axis_x, axis_y;
  std::optional<Axis> same_x, same_y;  // that change nothing
  Gaussian kernel_x, kernel_y;
};

// One thread's rows.
struct Lines {
  explicit Lines(const AugmentApply& a)
      : row_pitch(row_steps(std::max(a.width, a.out_width)) + 2 * kRowStep),
        padded_pitch(row_steps(3 * a.out_width) + 4 * kRowStep),
        line_pitch(row_steps(std::max(kBand, band_pixels(a)))),
        rows(places_of(std::min(band_rows(a.out_width), a.out_height) * kFewTaps / 2 + kFewTaps + 1) * 3 *
             row_steps(a.out_width)),
        lines(kFewTaps * 3 * row_pitch),
        mixed(a.channels_last ? 3 * a.width : 0),
        line(kBlurRows * line_pitch),
        half(kBand),
        padded(blur_group(a.out_width) * padded_pitch),
        blur_rows(a.out_height * 2 + 2 * blur_group(a.out_width)) {}

  int64_t row_pitch;     // from one of `rows` to the next
  int64_t padded_pitch;  // from one row of `padded` to the next
  int64_t line_pitch;    // from one row of `line` to the next
  Buffer<float> rows;    // of a crop, resized across
  int64_t held[2];       // which
  Buffer<float> lines;   // a row of a crop: pixels as they are, or blended ones
  Buffer<float> mixed;   // blended ones whose channels come last
  Buffer<float> line;    // blurred rows, or bands, that are not stored as they are
  Buffer<float> half;    // what is stored as half
  Buffer<float> padded;  // [blur_group, padded_pitch]: rows with their reflected ends
  Buffer<const float*> blur_rows;
};

// A sweep over the image through colour ops. Contrast needs the mean gray of what is before it, so it starts a new
// sweep, and the sweep before it sums that up.
struct Sweep {
  int begin, end;   // of color_op, the contrast that begins it included
  float mean;       // of the gray before that contrast
  bool sums, last;  // a contrast follows, or nothing
};

// One view of one image on its way through the stages. `lines`: of the one thread that does it all; null: the stages
// share their rows out to all threads. The arithmetic is the same.
class View {
 public:
  View(const AugmentApply& a, const AugmentRows& rows, int64_t number, bool stream, Planes* planes, Lines* lines)
      : a_(a),
        rows_(rows),
        p_(a.params[number]),
        number_(number),
        s_(*planes),
        lines_(lines),
        height_(a.out_height),
        width_(a.out_width),
        pixels_(height_ * width_),
        band_rows_(band_rows(width_)),
        bands_((height_ + band_rows_ - 1) / band_rows_),
        stream_(stream),
        blur_(p_.blur_sigma > 0),
        whole_(p_.sharpen != 0 || p_.autocontrast != 0 || p_.equalize != 0),
        point_ops_(p_.invert != 0 || p_.posterize != 0 || p_.solarize != 0) {
    bound_ = a.image_type == PixelType::kUint8 ? 255.f : 1.f;
    rounding_ = byte_rounding(p_);
  }

  void run() {
    Sweep sweep = next_sweep(0, false, 0);
    const bool warps = !is_identity_map(p_);
    // Pixels are resampled on their way into the first sweep, unless there is a warp before it.
    const Sweep first = warps ? Sweep{0, 0, 0, false, false} : sweep;
    if (a_.image_type == PixelType::kUint8)
      crop_resize_flip<uint8_t>(first);
    else
      crop_resize_flip<float>(first);
    const bool warp_ends = warps && sweep.last && !stream_ && converts_to_floats() &&
                           std::count(p_.color_op, p_.color_op + 4, 0.f) == 4 && p_.grayscale == 0;
    if (warps) warp(warp_ends);
    if (warps && !warp_ends) sweep_image(sweep);
    while (!sweep.last) {
      double gray = 0;
      for (int64_t band = 0; band < bands_; ++band) gray += s_.sums[band];
      sweep = next_sweep(sweep.end, true, gray / double(pixels_));
      sweep_image(sweep);
    }
    if (blur_) blur();
    if (whole_) finish();
    if (p_.erase_height > 0 && p_.erase_width > 0) erase();
  }

 private:
  float* channel(int64_t c) { return s_.image.get() + c * s_.plane; }

  // Calls f(lines, begin, end) over ranges that cover [0, n).
  template <class F>
  void each(int64_t n, int64_t grain, F&& f) {
    if (lines_) return f(*lines_, 0, n);
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      Lines lines(a_);
      f(lines, begin, end);
      if (stream_) rows_.stream_end();
    });
  }
  // Calls f(lines, band) for all bands, those of one thread after before(lines).
  template <class F, class G>
  void each_band(F&& f, G&& before) {
    each(bands_, std::max<int64_t>(1, kRowThreadPixels / 4 / (band_rows_ * width_)),
         [&](Lines& lines, int64_t begin, int64_t end) {
           before(lines);
           for (int64_t band = begin; band < end; ++band) f(lines, band);
         });
  }
  // So many rows of the output for each thread at least.
  int64_t row_grain() const { return std::max<int64_t>(1, kRowThreadPixels / 4 / width_); }

  // Every row of the crop on its way through the sweep.
  template <class Pixel>
  void crop_resize_flip(const Sweep& sweep) {
    s_.axis_x.build(rows_, int64_t(p_.crop_width), width_, p_.hflip != 0);
    s_.axis_y.build(rows_, int64_t(p_.crop_height), height_, p_.vflip != 0);
    rows_.place(&s_.axis_x.table);
    const Pixel* images = static_cast<const Pixel*>(a_.images);
    const int64_t pixels = a_.height * a_.width;
    Resample<Pixel> crop{};
    crop.step = a_.channels_last ? a_.channels : 1;
    crop.in =
        images + number_ * a_.channels * pixels + (int64_t(p_.crop_top) * a_.width + int64_t(p_.crop_left)) * crop.step;
    crop.end = images + a_.n * a_.channels * pixels;
    crop.pitch = a_.width * crop.step;
    crop.channel_pitch = a_.channels_last ? 1 : pixels;
    crop.width = int64_t(p_.crop_width);
    crop.across = s_.axis_x.table;
    crop.down = s_.axis_y.table;
    crop.bound = bound_;
    if constexpr (sizeof(Pixel) == 1)
      if (a_.bicubic && (crop.across.taps > 1 || crop.down.taps > 1)) return cut_off(crop, sweep);
    into_sweep(crop, sweep);
  }

  // Bytes through the cubic filter, which overshoots: as torchvision's, across first, and cut off between the two
  // directions and after them. What is not bytes is left as it is, there too.
  void cut_off(const Resample<uint8_t>& crop, const Sweep& sweep) {
    const int64_t rows = int64_t(p_.crop_height), plane = s_.height * width_, values = a_.channels * plane;
    if (!s_.same_x) {
      s_.same_x.emplace(width_, width_, true);
      s_.same_y.emplace(s_.height, s_.height, true);
      s_.between = Buffer<float>(values + 2 * kRowStep);
    }
    s_.same_x->build(rows_, width_, width_, false);
    s_.same_y->build(rows_, rows, rows, false);
    rows_.place(&s_.same_x->table);
    const int64_t some = std::min(band_rows_, height_);  // rows, that there is scratch for
    each(rows, row_grain(), [&](Lines& lines, int64_t begin, int64_t end) {
      Resample<uint8_t> across = crop;
      use_scratch(lines, some, &across);
      across.down = s_.same_y->table;
      across.clamps = true;
      ColorRun run{};
      run.channels = a_.channels == 3 ? 3 : 1;
      run.bytes = &across;
      run.n = width_;
      for (int64_t c = 0; c < a_.channels; c += run.channels, across.in += run.channels * crop.channel_pitch) {
        forget(lines);
        for (run.begin = begin; run.begin < end; run.begin = run.end) {
          run.end = std::min(run.begin + some, end);
          for (int64_t k = 0; k < run.channels; ++k) {
            run.out[k] = s_.between.get() + (c + k) * plane + run.begin * width_;
            run.factor[k] = 1;
          }
          rows_.color(run);
        }
      }
    });
    Resample<float> down{};
    down.in = s_.between.get();
    down.end = down.in + values + 2 * kRowStep;
    down.pitch = down.width = width_;
    down.channel_pitch = plane;
    down.step = 1;
    down.across = s_.same_x->table;
    down.down = crop.down;
    down.clamps = true;
    down.bound = bound_;
    into_sweep(down, sweep);
  }

  template <class Pixel>
  void into_sweep(const Resample<Pixel>& crop, const Sweep& sweep) {
    const int64_t rows = int64_t(p_.crop_height), of_band = band_rows_ * rows / height_ + crop.down.taps + 1;
    each_band(
        [&](Lines& lines, int64_t band) {
          Resample<Pixel> source = crop;
          use_scratch(lines, std::min(rows, of_band), &source);
          sweep_band(sweep, band, lines, &source);
        },
        [](Lines& lines) { forget(lines); });
  }

  // For runs that read `rows` of the crop's at most, if each of theirs is made of kFewTaps at most.
  template <class Pixel>
  static void use_scratch(Lines& lines, int64_t rows, Resample<Pixel>* crop) {
    crop->row_pitch = lines.row_pitch;
    crop->rows = lines.rows.get();
    crop->held = lines.held;
    crop->places = places_of(rows);
    crop->copies = reinterpret_cast<Pixel*>(lines.lines.get());
    crop->lines = lines.lines.get();
    crop->mixed = lines.mixed.get();
  }

  static void forget(Lines& lines) { lines.held[0] = lines.held[1] = 0; }

  // `ends`: into the output, nothing is left to be done.
  void warp(bool ends) {
    Warp warp{};
    std::copy(p_.map, p_.map + 9, warp.map);
    warp.width = width_;
    warp.height = height_;
    warp.channels = a_.channels;
    warp.nearest = a_.nearest;
    warp.fill = a_.fill;
    warp.in = channel(0);
    warp.plane = s_.plane;
    warp.out = ends ? static_cast<float*>(a_.out) + target(0, 0).at : s_.other(a_.channels);
    warp.out_plane = ends ? pixels_ : s_.plane;
    warp.mean = ends ? a_.mean : nullptr;
    warp.inverse_std = a_.inverse_std;
    warp.bound = bound_;
    each(height_, row_grain(), [&](Lines&, int64_t begin, int64_t end) { rows_.warp(warp, begin, end); });
    if (!ends) std::swap(s_.image, s_.spare);
  }

  // Whether what comes out of the colour ops is what the output has, normalised, and that is float32.
  bool converts_to_floats() const { return !blur_ && !whole_ && !point_ops_ && a_.out_type == PixelType::kFloat32; }

  Sweep next_sweep(int begin, bool contrast, double mean) const {
    int end = begin + contrast;
    while (end < 4 && int(p_.color_op[end]) != kContrast) ++end;
    return {begin, end, float(mean), end < 4, end == 4};
  }

  void sweep_image(const Sweep& sweep) {
    each_band([&](Lines& lines, int64_t band) { sweep_band<float>(sweep, band, lines, nullptr); }, [](Lines&) {});
  }

  // Takes a band of the crop, or of the image, through the sweep: to the image, or the output if nothing else is left.
  template <class Pixel>
  void sweep_band(const Sweep& sweep, int64_t band, Lines& lines, Resample<Pixel>* crop) {
    const int64_t row = band * band_rows_, rows = std::min(band_rows_, height_ - row);
    const int64_t at = row * width_, n = rows * width_;
    const bool ends = sweep.last && !blur_ && !whole_,
               converts = ends && a_.out_type != PixelType::kUint8 && !point_ops_;
    const bool direct = a_.out_type == PixelType::kFloat32;
    ColorRun run{};
    for (int i = sweep.begin; i < sweep.end; ++i)
      if (p_.color_op[i] != 0) run.op[run.ops++] = int(p_.color_op[i]);
    run.brightness = p_.brightness;
    run.contrast = p_.contrast;
    run.contrast_add = (1 - p_.contrast) * sweep.mean;
    run.saturation = p_.saturation;
    run.hue = p_.hue;
    run.bound = bound_;
    run.gray = sweep.last && p_.grayscale != 0 && a_.channels == 3;
    run.sum = sweep.sums;
    run.channels = a_.channels == 3 ? 3 : 1;
    run.begin = crop ? row : 0;
    run.end = crop ? row + rows : 1;
    run.n = crop ? width_ : n;
    for (int64_t c = 0; c < a_.channels; c += run.channels) {
      if (crop && run.channels < a_.channels) forget(lines);  // what is there is another channel's
      source_of(crop, &run);
      run.stream = converts && direct && (!crop || width_ % kRowStep == 0);
      for (int64_t k = 0; k < run.channels; ++k) {
        float* pixels = channel(c + k) + at;
        run.plane[k] = run.out[k] = pixels;
        run.factor[k] = 1;
        if (!converts) continue;
        const Target to = target(c + k, at);
        run.out[k] = direct ? static_cast<float*>(a_.out) + to.at : lines.line.get() + k * lines.line_pitch;
        run.factor[k] = to.factor;
        run.add[k] = to.add;
        run.stream &= aligned(run.out[k]);
      }
      if (crop || converts || run.ops > 0 || run.gray || run.sum) {
        const double sum = rows_.color(run);
        if (run.sum) s_.sums[band] = sum;
      }
      for (int64_t k = 0; k < run.channels && ends; ++k) {
        if (converts) {
          if (!direct) store_half(run.out[k], n, target(c + k, at).at);
        } else {
          point_ops(run.out[k], n);
          store(c + k, at, run.out[k], n, lines);
        }
      }
      if (crop) crop->in += run.channels * crop->channel_pitch;
    }
  }
  static void source_of(const Resample<uint8_t>* crop, ColorRun* run) { run->bytes = crop; }
  static void source_of(const Resample<float>* crop, ColorRun* run) { run->floats = crop; }

  void point_ops(float* values, int64_t n) {
    const float noise = step_noise(bound_);
    if (p_.invert != 0) invert_row(values, n, bound_);
    if (p_.posterize != 0) posterize_row(values, n, posterize_step(p_.posterize, bound_), p_.posterize, noise);
    if (p_.solarize != 0) rows_.solarize(values, n, p_.solarize_threshold * bound_ - noise, bound_);
  }

  // Normalises and stores n pixels of channel c from pixel `at` on.
  void store(int64_t c, int64_t at, const float* values, int64_t n, Lines& lines) {
    const Target to = target(c, at);
    if (a_.out_type == PixelType::kUint8) {
      quantize_row(values, n, 255 / bound_, rounding_, static_cast<uint8_t*>(a_.out) + to.at);
      return;
    }
    for (int64_t done = 0; done < n; done += kBand) {
      const int64_t some = std::min(kBand, n - done);
      const bool direct = a_.out_type == PixelType::kFloat32;
      float* line = direct ? static_cast<float*>(a_.out) + to.at + done : lines.half.get();
      rows_.normalize(values + done, some, to.factor, to.add, direct && aligned(line), line);
      if (!direct) store_half(line, some, to.at + done);
    }
  }

  void store_half(const float* line, int64_t n, int64_t at) {
    uint16_t* out = static_cast<uint16_t*>(a_.out) + at;
    a_.out_type == PixelType::kBFloat16 ? rows_.to_bfloat16(line, n, out) : rows_.to_float16(line, n, out);
  }

  // Where channel c's pixel `at` goes in the output, and how it is normalised.
  struct Target {
    int64_t at;
    float factor, add;
  };
  Target target(int64_t c, int64_t at) const {
    return {(number_ * a_.channels + c) * pixels_ + at, a_.inverse_std[c] / bound_, -a_.mean[c] * a_.inverse_std[c]};
  }
  bool aligned(const float* out) const { return stream_ && reinterpret_cast<uintptr_t>(out) % 64 == 0; }

  // Blurs, some rows at a time; then normalises and stores, unless more is to be done on the image as a whole.
  void blur() {
    s_.kernel_x.build(int64_t(p_.blur_radius_x), p_.blur_sigma);
    s_.kernel_y.build(int64_t(p_.blur_radius_y), p_.blur_sigma);
    float* other = whole_ ? s_.other(a_.channels) : nullptr;
    const int64_t group = blur_group(width_), groups = (height_ + group - 1) / group;
    // A gray image's channels are one.
    const int64_t channels = p_.grayscale != 0 && !whole_ ? 1 : a_.channels;
    each(channels * groups, std::max<int64_t>(1, row_grain() / group), [&](Lines& lines, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) blur_rows(i / groups, i % groups * group, channels, other, lines);
    });
    if (whole_) std::swap(s_.image, s_.spare);
  }

  // The rows from y on of channel c, which is the first of all that are equal to it.
  void blur_rows(int64_t c, int64_t y, int64_t channels, float* other, Lines& lines) {
    const int64_t some = std::min(blur_group(width_), height_ - y);
    // Blur and normalisation are one step, unless something comes between them.
    const bool equal = channels < a_.channels;
    const bool apart = a_.out_type == PixelType::kUint8 || point_ops_ || whole_ || equal;
    const bool direct = a_.out_type == PixelType::kFloat32 && !apart;
    const Target to = target(c, y * width_);
    float* line = lines.line.get();
    if (direct) line = static_cast<float*>(a_.out) + to.at;
    if (other) line = other + c * s_.plane + y * width_;
    const Gaussian &across = s_.kernel_x, &down = s_.kernel_y;
    rows_.blur({channel(c), height_, width_, across.weight, down.weight, across.reach, down.reach,
                apart ? 1 : to.factor, apart ? 0 : to.add, direct && aligned(line) && width_ % kRowStep == 0, line,
                lines.blur_rows.get(), lines.padded.get() + row_steps(across.reach), lines.padded_pitch},
               y, some);
    if (direct || other) return;
    if (!apart) return store_half(line, some * width_, to.at);
    point_ops(line, some * width_);
    for (int64_t k = c; k < (equal ? a_.channels : c + 1); ++k) store(k, y * width_, line, some * width_, lines);
  }

  // What needs the image as a whole, channel by channel.
  void finish() {
    float* other = p_.sharpen != 0 ? s_.other(a_.channels) : nullptr;
    each(a_.channels, 1, [&](Lines& lines, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        float* plane = channel(c);
        if (other && height_ > 2 && width_ > 2) {
          plane = other + c * s_.plane;
          std::copy(channel(c), channel(c) + width_, plane);
          for (int64_t y = 1; y + 1 < height_; ++y) {
            const float* row = channel(c) + y * width_;
            sharpen_row(row - width_, row, row + width_, width_, p_.sharpness, bound_, bound_ == 255,
                        plane + y * width_);
          }
          std::copy(channel(c) + pixels_ - width_, channel(c) + pixels_, plane + pixels_ - width_);
        }
        point_ops(plane, pixels_);
        if (p_.autocontrast != 0) stretch_plane(plane, pixels_, bound_);
        if (p_.equalize != 0)
          equalize_plane(plane, pixels_, bound_ == 255 ? 1 : 255.999f, bound_ == 255 ? rounding_ : 0, bound_ / 255);
        store(c, 0, plane, pixels_, lines);
      }
    });
  }

  void erase() {
    const int64_t top = int64_t(p_.erase_top), left = int64_t(p_.erase_left), width = int64_t(p_.erase_width);
    if (stream_) rows_.stream_end();
    for (int64_t c = 0; c < a_.channels; ++c)
      for (int64_t y = top; y < top + int64_t(p_.erase_height); ++y)
        for (int64_t x = left; x < left + width; ++x) {
          const int64_t pixel = y * width_ + x;
          float value = p_.erase_seed > 0 ? erase_noise(uint32_t(p_.erase_seed), pixel, c) : a_.erase[c];
          const int64_t at = target(c, pixel).at;
          if (a_.out_type == PixelType::kFloat32) {
            static_cast<float*>(a_.out)[at] = value;
          } else if (a_.out_type == PixelType::kUint8) {
            // A value given is cut off, as where torch turns it into a byte; noise is rounded.
            value = p_.erase_seed > 0 ? std::nearbyint(value) : value;
            static_cast<uint8_t*>(a_.out)[at] = uint8_t(clamp(value, 255.f));
          } else {
            store_half(&value, 1, at);
          }
        }
  }

  const AugmentApply& a_;
  const AugmentRows& rows_;
  const AugmentParams& p_;
  const int64_t number_;
  Planes& s_;
  Lines* const lines_;
  const int64_t height_, width_, pixels_, band_rows_, bands_;
  const bool stream_;  // whether float32 output goes past the caches
  const bool blur_, whole_, point_ops_;
  float bound_;     // the largest value: 255 or 1, as the images'
  float rounding_;  // what a byte is more than the floor of
};

// An output that no cache holds need not push the images out of it.
bool streams(const AugmentApply& a) {
  return a.n * a.channels * a.out_height * a.out_width * int64_t(sizeof(float)) >= kStreamBytes;
}

// Scratch for views of several sizes, those of one size sharing it.
template <class Scratch>
class PerSize {
 public:
  Scratch& of(const AugmentApply& a) {
    for (Entry& entry : entries_)
      if (entry.height == a.out_height && entry.width == a.out_width) return entry.scratch;
    entries_.push_back({a.out_height, a.out_width, Scratch(a)});
    return entries_.back().scratch;
  }

 private:
  struct Entry {
    int64_t height, width;
    Scratch scratch;
  };
  std::vector<Entry> entries_;
};

// Which image is next, in a cache line of its own: counters in one would go back and forth between the cores.
struct alignas(64) Counter {
  std::atomic<int64_t> next;
};

// A view made channel by channel, to where its channels come last; `shared_out`: by all threads.
template <class T>
void join_view(const AugmentApply& view, const float* planes, char* out, bool shared_out) {
  const int64_t pixels = view.out_height * view.out_width;
  const auto join = [&](int64_t begin, int64_t end) {
    join_channels(reinterpret_cast<const T*>(planes) + begin, pixels, view.channels, end - begin,
                  reinterpret_cast<T*>(out) + begin * view.channels);
  };
  shared_out ? parallel_for(pixels, kRowThreadPixels, join) : join(0, pixels);
}

}  // namespace

void augment_sample(const AugmentSample& problem) {
  const auto draw = augment_rows().draw;
  parallel_for(problem.n, draw ? 512 : 64, [&](int64_t begin, int64_t end) {
    if (draw) return draw(problem, begin, end);
    AugmentStream stream = problem.stream;
    for (int64_t i = begin; i < end; ++i) {
      if (problem.shapes) {
        stream.height = problem.shapes[3 * i];
        stream.width = problem.shapes[3 * i + 1];
      }
      problem.params[i] = draw_params(problem.recipe, stream, problem.index[i]);
    }
  });
}

void augment_apply(const AugmentApply* views, int64_t count) {
  if (count == 0) return;
  const AugmentRows& rows = augment_rows();
  const auto make = [&](const AugmentApply& view, int64_t i, Planes* planes, Lines* lines) {
    if (!view.offsets && !view.out_channels_last) return View(view, rows, i, streams(view), planes, lines).run();
    AugmentApply one = image_alone(view, i);
    const int64_t values = view.channels * view.out_height * view.out_width, bytes = pixel_bytes(view.out_type);
    char* const out = static_cast<char*>(view.out) + i * values * bytes;
    one.out = out;
    if (!view.out_channels_last) return View(one, rows, 0, streams(view), planes, lines).run();
    // Every stage works channel by channel: the finished view is still in the cache when its channels are joined.
    float* const finished = planes->finished(values);
    one.out = finished;
    View(one, rows, 0, false, planes, lines).run();
    (bytes == 1 ? join_view<uint8_t> : bytes == 2 ? join_view<uint16_t> : join_view<float>)(one, finished, out, !lines);
  };
  const int64_t n = views[0].n, threads = thread_count();
  int64_t largest = 0;
  for (int64_t v = 0; v < count; ++v) largest = std::max(largest, views[v].out_height * views[v].out_width);
  if (n < threads && largest >= kRowThreadPixels) {
    PerSize<Planes> planes;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t v = 0; v < count; ++v) make(views[v], i, &planes.of(views[v]), nullptr);
    return;
  }
  // Each thread begins with images of its own, the same in every batch, which its cache may still have. They differ in
  // work: a thread that is done goes on with those of the others.
  const int64_t parts = std::min(n, threads);
  std::vector<Counter> counters(parts);
  for (int64_t part = 0; part < parts; ++part) counters[part].next.store(n * part / parts, std::memory_order_relaxed);
  parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    PerSize<Planes> planes;
    PerSize<Lines> lines;
    for (int64_t first = begin; first < end; ++first)
      for (int64_t part = first; part < first + parts; ++part) {
        const int64_t past = n * (part % parts + 1) / parts;
        std::atomic<int64_t>& next = counters[part % parts].next;
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < past;)
          for (int64_t v = 0; v < count; ++v) make(views[v], i, &planes.of(views[v]), &lines.of(views[v]));
      }
    rows.stream_end();
  });
}

}  // namespace fastcl
