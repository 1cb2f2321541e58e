// Random tables of parameters, most of them wrong, on random images: run under address and undefined-behaviour
// sanitizers by test_fuzz_augment.py (few) and `make fuzz` (a million). Memory is exactly as large as documented, so a
// read or write out of bounds is an error of the run. Usage: fuzz_augment COUNT [SEED]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_math.h"
#include "std_threads.h"

using namespace fastcl;

namespace {

struct Random {
  uint64_t seed, count = 0;
  uint32_t bits() { return philox({{uint32_t(count++), 0, 0, 0}}, seed).word[0]; }
  int64_t below(int64_t n) { return int64_t(bits()) % n; }
  double unit() { return bits() * 0x1p-32; }
};

float wild(Random& random) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float values[] = {std::nanf(""), inf, -inf,  -1,     -0.f,   0,       0.5f,   1, 2, 3, 7,
                          255,           256, 1e30f, -1e30f, 1e-40f, 0x1p31f, 0x1p63f};
  return random.below(4) ? values[random.below(std::size(values))] : float(random.unit() * 40 - 10);
}

AugmentRecipe recipe_of(Random& random, bool color) {
  AugmentRecipe r{};
  const auto range = [&](double& low, double& high, double from, double to) {
    low = from + (to - from) * random.unit();
    high = low + (to - low) * random.unit();
  };
  r.crop = double(random.below(2));
  range(r.crop_scale_min, r.crop_scale_max, 0, 1);
  range(r.crop_log_ratio_min, r.crop_log_ratio_max, -3, 3);
  r.crop_ratio_min = std::exp(r.crop_log_ratio_min);
  r.crop_ratio_max = std::exp(r.crop_log_ratio_max);
  r.hflip_p = r.vflip_p = r.rot90_p = r.invert_p = r.posterize_p = r.solarize_p = 0.3;
  r.hflip_at = double(random.below(3));
  r.vflip_at = double(random.below(3));
  r.warp_p = r.blur_p = r.sharpen_p = r.autocontrast_p = r.equalize_p = r.erase_p = 0.4;
  r.perspective = random.below(2) ? random.unit() : -1;
  range(r.angle_from, r.angle_to, -400, 400);
  range(r.zoom_min, r.zoom_max, 0.1, 4);
  range(r.shear_x_min, r.shear_x_max, -89, 89);
  r.translate_x = random.unit();
  r.translate_y = -1;
  r.jitter_p = color ? 0.7 : 0;
  for (double* v : {&r.brightness_min, &r.contrast_min, &r.saturation_min}) range(v[0], v[1], 0, 3);
  range(r.hue_min, r.hue_max, -0.5, 0.5);
  r.grayscale_p = color ? 0.3 : 0;
  range(r.blur_sigma_min, r.blur_sigma_max, 0.01, 9);
  r.blur_radius_x = r.blur_radius_y = -1;
  r.sharpness = random.unit() * 3;
  r.posterize_levels = double(1 << random.below(9));
  r.solarize_threshold = random.unit();
  range(r.erase_scale_min, r.erase_scale_max, 0, 1);
  range(r.erase_log_ratio_min, r.erase_log_ratio_max, -2, 2);
  r.erase_noise = double(random.below(2));
  return r;
}

}  // namespace

int main(int count_of_arguments, char** arguments) {
  const int64_t tables = count_of_arguments > 1 ? std::atoll(arguments[1]) : 1000;
  Random random{count_of_arguments > 2 ? uint64_t(std::atoll(arguments[2])) : 1};
  int64_t applied = 0, refused = 0, unwritten = 0;
  for (int64_t t = 0; t < tables; ++t) {
    threads = random.below(50) ? 1 : 3;
    const bool large = threads > 1 && random.below(2);  // rows are shared out
    AugmentApply a{};
    const PixelType types[] = {PixelType::kUint8, PixelType::kFloat32, PixelType::kBFloat16, PixelType::kFloat16};
    a.image_type = types[random.below(2)];
    a.out_type = types[random.below(4)];
    a.n = 1;
    a.channels = random.below(4) ? (random.below(2) ? 3 : 1) : 1 + random.below(5);
    a.channels_last = a.channels > 1 && random.below(2);
    a.height = 1 + random.below(random.below(8) ? 20 : 120);
    a.width = 1 + random.below(random.below(8) ? 20 : 120);
    a.out_height = large ? 130 : 1 + random.below(random.below(8) ? 20 : 70);
    a.out_width = large ? 127 + random.below(9) : 1 + random.below(random.below(8) ? 20 : 70);
    a.nearest = random.below(2);
    a.bicubic = random.below(2);
    a.out_channels_last = a.channels > 1 && random.below(3) == 0;
    const bool color = a.channels == 1 || a.channels == 3;
    const AugmentStream stream{random.bits(),       0, 0, int32_t(a.height), int32_t(a.width), int32_t(a.out_height),
                               int32_t(a.out_width)};
    AugmentParams p = draw_params(recipe_of(random, color), stream, t);
    for (int64_t changes = random.below(2) ? random.below(4) : 0; changes > 0; --changes)
      reinterpret_cast<float*>(&p)[random.below(kParams)] = wild(random);
    a.params = &p;
    int64_t bad = -1;
    if (!params_fit(p, a, &bad)) {
      if (bad < 0 || bad >= kParams) return std::printf("table %lld: no column is named\n", (long long)t), 1;
      ++refused;
      continue;
    }
    if (bad != kParams) return std::printf("table %lld: a column is named\n", (long long)t), 1;
    const int64_t pixels = a.channels * a.height * a.width, outputs = a.channels * a.out_height * a.out_width;
    std::vector<uint8_t> bytes(a.image_type == PixelType::kUint8 ? size_t(pixels) : 0);
    std::vector<float> floats(a.image_type == PixelType::kFloat32 ? size_t(pixels) : 0);
    for (uint8_t& v : bytes) v = uint8_t(random.bits());
    for (float& v : floats) v = random.below(100) ? float(random.unit()) : wild(random);
    // Some are the last one of a ragged batch, in which there are larger ones.
    const bool ragged = !bytes.empty() && (a.channels_last || a.channels == 1) && random.below(2);
    const int32_t shape[] = {int32_t(a.height), int32_t(a.width), int32_t(a.channels)};
    const int64_t offset = random.below(100);
    if (ragged) {
      bytes.insert(bytes.begin(), size_t(offset), 0);
      a.offsets = &offset;
      a.shapes = shape;
      a.height += random.below(50);
      a.width += random.below(50);
    }
    a.images = bytes.empty() ? static_cast<const void*>(floats.data()) : bytes.data();
    const std::vector<float> values(size_t(a.channels), 0.5f);
    a.fill = random.below(2) ? values.data() : nullptr;
    a.mean = a.inverse_std = a.erase = values.data();
    std::vector<uint8_t> out(size_t(outputs * pixel_bytes(a.out_type)), 0xcd);
    a.out = out.data();
    augment_apply(&a, 1);
    ++applied;
    // Every float is written: 0xcdcdcdcd is -4.3e8, which no finite image becomes.
    if (a.out_type == PixelType::kFloat32 && a.image_type == PixelType::kUint8)
      for (int64_t i = 0; i < outputs; ++i)
        unwritten += reinterpret_cast<const uint32_t*>(out.data())[i] == 0xcdcdcdcdu;
  }
  std::printf("%lld applied, %lld refused, %lld values not written\n", (long long)applied, (long long)refused,
              (long long)unwritten);
  return unwritten > 0 || applied == 0 || refused == 0;
}
