// Adversarial and random calls of every CPU operator, built with address and undefined-behaviour
// sanitizers, or with that of threads. Every buffer lies alone on the heap with exactly its size, so a
// read or write one element outside aborts. What a call returns is checked where that needs no second
// implementation.
//
//   fuzz_engine SEED ROUNDS [CALLERS]
//
// Each of the CALLERS is a thread that makes its own ROUNDS, beside the others.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <locale>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "fastrcnn_engine/box_codec.h"
#include "fastrcnn_engine/detections.h"
#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/nms.h"
#include "fastrcnn_engine/roi_pool.h"
#include "fastrcnn_engine/semantics/box_rows.h"
#include "fastrcnn_engine/semantics/half.h"
#include "fastrcnn_engine/semantics/iou.h"
#include "fastrcnn_engine/smooth_l1.h"

namespace {

using namespace fastrcnn_engine;

#define CHECK(condition)                                                               \
  do {                                                                                 \
    if (!(condition)) {                                                                \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);     \
      std::abort();                                                                    \
    }                                                                                  \
  } while (false)

// Exactly n elements: no spare capacity for an overrun to hide in.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : size_(n), data_(static_cast<T*>(std::malloc(n * sizeof(T)))) {}
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t size_;
  T* data_;
};

class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}

  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }

  // Everyday numbers, halves, neighbours of the limits, and any bit pattern at all.
  template <typename T>
  T number() {
    if constexpr (sizeof(T) == 2)
      return one_in(3) ? any_bits<T>() : semantics::narrow<T>(number<float>());
    else
      return wide_number<T>();
  }

  template <typename T>
  T wide_number() {
    using Limits = std::numeric_limits<T>;
    static const T special[] = {
        T(0), T(-0.0), T(0.5), T(-0.5), T(1.5), T(-1), T(1e9), T(-1e9), T(2147483648.0),
        T(-2147483649.0), T(9.3e18), T(-9.3e18), T(1e30), T(-1e30), Limits::infinity(),
        -Limits::infinity(), Limits::quiet_NaN(), Limits::max(), Limits::lowest(), Limits::min(),
        Limits::denorm_min(), std::nextafter(T(0.5), T(0)), T(8388609), T(4294967296.0)};
    switch (below(6)) {
      case 0: return special[below(std::size(special))];
      case 1: return any_bits<T>();
      case 2: return static_cast<T>(between(-24, 40)) / 2;
      default: return static_cast<T>(between(-4000, 12000)) / T(256);
    }
  }

  template <typename T>
  void fill(const Buffer<T>& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = number<T>();
  }

  // Everyday numbers alone.
  template <typename T>
  void fill_plainly(const Buffer<T>& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) {
      const auto value = static_cast<float>(between(-40, 90)) / 8;
      if constexpr (sizeof(T) == 2)
        buffer[i] = semantics::narrow<T>(value);
      else
        buffer[i] = value;
    }
  }

 private:
  template <typename T>
  T any_bits() {
    const uint64_t bits = engine_();
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
  }

  std::mt19937_64 engine_;
};

// Runs the call; true if it went through, false if it was refused as the caller's fault. Any other
// exception ends the program.
template <typename Call>
bool accepted(const Call& call) {
  try {
    call();
    return true;
  } catch (const InvalidArgument&) {
    return false;
  }
}

// A call is refused where a view of it has elements, but no memory.
template <typename Call, typename... Views>
void needs_memory(const Call& call, Views&... views) {
  const auto needs = [&](auto& view) {
    const auto data = view.data;
    view.data = nullptr;
    CHECK(view.size() == 0 || !accepted(call));
    view.data = data;
  };
  (needs(views), ...);
}

template <typename T>
bool same(T a, T b) {
  const auto x = semantics::widen(a), y = semantics::widen(b);
  return (std::isnan(x) && std::isnan(y)) || std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <typename T, typename Index>
void roi_pool(Dice& dice) {
  const int64_t n = dice.between(0, 3), h = dice.between(0, 12), w = dice.between(0, 12);
  const int64_t c = dice.one_in(3) ? dice.between(30, 150) : dice.between(0, 5);
  const int64_t ph = dice.between(1, dice.one_in(9) ? 40 : 8), pw = dice.between(1, 8);
  const int64_t r = n == 0 ? 0 : dice.between(0, dice.one_in(6) ? 90 : 6);
  const Layout layout = dice.one_in(2) ? Layout::nchw : Layout::nhwc;

  Buffer<T> features(n * c * h * w);
  if (dice.one_in(2))
    dice.fill(features);
  else
    dice.fill_plainly(features);
  Buffer<float> rois(r * 5);
  dice.fill(rois);
  bool valid_rows = true;
  for (int64_t i = 0; i < r; ++i) {
    if (!dice.one_in(20)) rois[5 * i] = static_cast<float>(dice.below(n * 4)) / 4;
    valid_rows = valid_rows && rois[5 * i] > -1 && rois[5 * i] < static_cast<float>(n);
  }
  Buffer<T> output(r * c * ph * pw);
  Buffer<Index> argmax(output.size());

  RoiPoolForward<T, Index> forward;
  forward.threads = static_cast<int>(dice.between(0, 4));
  forward.features = {features.data(), n, c, h, w, layout};
  forward.rois = {rois.data(), {r, 5}};
  static const float scales[] = {1.0f, 0.0625f, 1e-30f, 1e30f, 0.7f};
  forward.spatial_scale = scales[dice.below(std::size(scales))];
  forward.output = {output.data(), r, c, ph, pw, layout};
  const bool with_argmax = dice.one_in(2);
  if (with_argmax) forward.argmax = {argmax.data(), r, c, ph, pw, layout};
  CHECK(accepted([&] { cpu::roi_pool_forward(forward); }) == valid_rows);

  if (valid_rows && with_argmax) {
    for (int64_t i = 0; i < r; ++i)
      for (int64_t k = 0; k < c; ++k)
        for (int64_t bin = 0; bin < ph * pw; ++bin) {
          const int64_t at = forward.output.offset(i, k, bin);
          const int64_t cell = argmax[at] == static_cast<Index>(-1) ? -1 : int64_t{argmax[at]};
          CHECK(cell >= -1 && cell < h * w);
          const auto image = static_cast<int64_t>(rois[5 * i]);
          const T expected = cell < 0 ? T{} : features[forward.features.offset(image, k, cell)];
          CHECK(same(output[at], expected));
        }
  }

  // Without argmax RoIs are pooled from the maxima of 2 x 2 cells, and all must be the same.
  if (valid_rows && !with_argmax) {
    Buffer<T> by_cells(output.size());
    auto other = forward;
    other.output.data = by_cells.data();
    other.argmax = {argmax.data(), r, c, ph, pw, layout};
    cpu::roi_pool_forward(other);
    for (int64_t i = 0; i < output.size(); ++i) CHECK(same(output[i], by_cells[i]));
  }

  // 16-bit features are compared by their bits: as their own values widened, all must be the same.
  if constexpr (sizeof(T) == 2) {
    if (valid_rows) {
      Buffer<float> wide(features.size()), wide_output(output.size());
      Buffer<Index> wide_argmax(output.size());
      for (int64_t i = 0; i < features.size(); ++i) wide[i] = semantics::widen(features[i]);
      RoiPoolForward<float, Index> other;
      other.features = {wide.data(), n, c, h, w, layout};
      other.rois = forward.rois;
      other.spatial_scale = forward.spatial_scale;
      other.output = {wide_output.data(), r, c, ph, pw, layout};
      if (with_argmax) other.argmax = {wide_argmax.data(), r, c, ph, pw, layout};
      cpu::roi_pool_forward(other);
      for (int64_t i = 0; i < output.size(); ++i) {
        CHECK(same(semantics::widen(output[i]), wide_output[i]));
        CHECK(!with_argmax || argmax[i] == wide_argmax[i]);
      }
    }
  }

  // The argmax of a backward comes from the caller, so it may hold anything.
  if (!with_argmax || !valid_rows || dice.one_in(2))
    for (int64_t i = 0; i < argmax.size(); ++i)
      argmax[i] = static_cast<Index>(dice.one_in(3) ? dice.between(INT32_MIN, INT32_MAX)
                                                    : dice.between(-2, h * w + 1));
  Buffer<T> gradient(output.size()), grad_input(features.size());
  dice.fill(gradient);
  RoiPoolBackward<T, Index> backward;
  backward.grad_output = {gradient.data(), r, c, ph, pw, layout};
  backward.argmax = {argmax.data(), r, c, ph, pw, layout};
  backward.rois = forward.rois;
  backward.grad_input = {grad_input.data(), n, c, h, w, layout};
  backward.threads = forward.threads;
  const bool went = accepted([&] { cpu::roi_pool_backward(backward); });
  // A bad row with nothing to add may pass.
  if (valid_rows) CHECK(went);
  if (output.size() > 0 && grad_input.size() > 0) CHECK(went == valid_rows);
  // Any scale says where an argmax may be, never where it is.
  if (went) {
    Buffer<T> located(grad_input.size());
    auto other = backward;
    other.spatial_scale = scales[dice.below(std::size(scales))];
    other.grad_input.data = located.data();
    cpu::roi_pool_backward(other);
    for (int64_t i = 0; i < grad_input.size(); ++i) CHECK(same(grad_input[i], located[i]));
  }
  needs_memory([&] { cpu::roi_pool_forward(forward); }, forward.features, forward.rois, forward.output);
  needs_memory([&] { cpu::roi_pool_backward(backward); }, backward.grad_output, backward.argmax,
               backward.rois, backward.grad_input);

  // Shapes that contradict each other are refused before anything is touched.
  if (r > 0 && dice.one_in(4)) {
    const auto refuses = [&](const auto& change) {
      auto wrong = forward;
      change(wrong);
      return !accepted([&] { cpu::roi_pool_forward(wrong); });
    };
    const auto refuses_back = [&](const auto& change) {
      auto wrong = backward;
      change(wrong);
      return !accepted([&] { cpu::roi_pool_backward(wrong); });
    };
    const Layout other = layout == Layout::nchw ? Layout::nhwc : Layout::nchw;
    CHECK(refuses([&](auto& call) { call.output.n = r + 1; }));
    CHECK(refuses([&](auto& call) { call.output.c = c + 1; }));
    CHECK(refuses([&](auto& call) { call.rois.shape[1] = 4; }));
    CHECK(refuses([&](auto& call) { call.output.h = dice.between(-1, 0); }));
    CHECK(refuses([&](auto& call) { call.output.w = dice.between(-1, 0); }));
    for (const float scale : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()})
      CHECK(refuses([&](auto& call) { call.spatial_scale = scale; }));
    CHECK(refuses([&](auto& call) { call.argmax = {argmax.data(), r, c, ph, pw + 1, layout}; }));
    CHECK(refuses([&](auto& call) { call.argmax = {argmax.data(), r, c, ph, pw, other}; }));
    for (const float scale : {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()})
      CHECK(refuses_back([&](auto& call) { call.spatial_scale = scale; }));
    CHECK(refuses_back([&](auto& call) { call.argmax.w = pw + 1; }));
    CHECK(refuses_back([&](auto& call) { call.argmax.layout = other; }));
    CHECK(refuses_back([&](auto& call) { call.grad_input.c = c + 1; }));
    CHECK(refuses_back([&](auto& call) { call.rois.shape[0] = r + 1; }));
    CHECK(refuses_back([&](auto& call) { call.rois.shape[1] = 4; }));
    if (output.size() > 0) {
      CHECK(refuses([&](auto& call) { call.features.layout = other; }));
      CHECK(refuses_back([&](auto& call) { call.grad_input.layout = other; }));
    }
  }
}

// Boxes that mostly overlap, so that suppression has work.
template <typename T>
void fill_boxes(Dice& dice, const Buffer<T>& boxes) {
  for (int64_t i = 0; i < boxes.size(); ++i)
    boxes[i] = dice.one_in(8) ? dice.number<T>() : T(dice.between(0, 12) + (i % 4 >= 2 ? 8 : 0));
}

// What suppression tests before it divides must hold wherever a box suppresses another.
template <typename T>
void suppression_conditions(Dice& dice) {
  using namespace semantics;
  using Limits = std::numeric_limits<T>;
  const T side = static_cast<T>(dice.below(2));
  const int exponent = static_cast<int>(
      dice.one_in(2) ? 0 : dice.between(Limits::min_exponent - Limits::digits, 0) / 2 +
                           dice.below(Limits::max_exponent));
  Buffer<T> corners(8);
  fill_boxes(dice, corners);
  for (int64_t i = 0; i < 8; ++i) {
    corners[i] = std::ldexp(corners[i], exponent);
    if (i >= 4 && dice.one_in(2))  // a neighbour of the same corner of the other box
      corners[i] = std::nextafter(corners[i - 4], dice.one_in(2) ? corners[i] : Limits::infinity());
    else if (i >= 4 && dice.one_in(2))
      corners[i] = corners[i - 4];
  }
  const Box<T> a = box_at(corners.data(), 0), b = box_at(corners.data(), 1);
  const T overlap = iou(a, b, side);
  float threshold = static_cast<float>(dice.between(0, 10)) / 10;
  if (overlap >= 0 && overlap <= 1 && dice.one_in(2))  // the overlap itself and its neighbours
    threshold = std::nextafter(static_cast<float>(overlap), static_cast<float>(dice.below(2)));
  if (!suppresses(a, b, threshold, side)) return;
  const T area_a = area(a, side), area_b = area(b, side), limit = static_cast<T>(threshold);
  CHECK(may_overlap(area_a) && may_overlap(area_b));
  CHECK(may_exceed(intersection(a, b, side), area_a, area_b, limit));
  const AreaRange<T> range = overlapping_areas(area_b, limit);
  CHECK(range.low <= area_a && area_a <= range.high);
}

// Falling score, then rising index, told without rank_key. Not for NaN.
template <typename T>
bool ranks_before(T score_a, int64_t index_a, T score_b, int64_t index_b) {
  return score_a != score_b ? score_a > score_b : index_a < index_b;
}

template <typename T>
void rank_keys(Dice& dice) {
  const T a = dice.number<T>(), b = dice.one_in(4) ? -a : dice.number<T>();
  if (std::isnan(a) || std::isnan(b)) return;
  const auto key_a = semantics::rank_key(a), key_b = semantics::rank_key(b);
  CHECK((key_a < key_b || (key_a == key_b && 1 < 2)) == ranks_before(a, 1, b, 2));
  CHECK((key_a < key_b || (key_a == key_b && 2 < 1)) == ranks_before(a, 2, b, 1));
}

template <typename T>
void nms(Dice& dice) {
  for (int i = 0; i < 50; ++i) suppression_conditions<T>(dice), rank_keys<T>(dice);
  int64_t b = dice.one_in(10) ? dice.between(60, 140) : dice.between(0, 12);
  const bool many = dice.one_in(300);  // so many apart that kept ones are in several lists
  if (many) b = dice.between(2400, 2600);
  Buffer<T> boxes(b * 4), scores(b);
  fill_boxes(dice, boxes);
  if (many)
    for (int64_t i = 0; i < b; ++i) boxes[4 * i] += i % 2300 * 40, boxes[4 * i + 2] += i % 2300 * 40;
  dice.fill(scores);
  Buffer<int64_t> classes(b), keep(b);
  for (int64_t i = 0; i < b; ++i)
    classes[i] = many            ? i % 2
                 : dice.one_in(9) ? (dice.one_in(2) ? INT64_MIN : INT64_MAX)
                                  : dice.between(-1, 2);

  Nms<T> call;
  call.boxes = {boxes.data(), {b, 4}};
  call.scores = {scores.data(), {b}};
  call.class_ids = dice.one_in(2) ? classes.data() : nullptr;
  call.iou_threshold = static_cast<float>(dice.between(0, 10)) / 10;
  call.inclusive = dice.one_in(2);
  call.keep = {keep.data(), {b}};
  int64_t kept = -1;
  CHECK(accepted([&] { kept = cpu::nms(call); }));
  CHECK(kept >= 0 && kept <= b);
  std::set<int64_t> seen;
  for (int64_t i = 0; i < kept; ++i) {
    CHECK(keep[i] >= 0 && keep[i] < b && seen.insert(keep[i]).second);
    CHECK(!std::isnan(scores[keep[i]]));
    if (i > 0) CHECK(ranks_before(scores[keep[i - 1]], keep[i - 1], scores[keep[i]], keep[i]));
  }
  // A box is there if and only if no box before it of its class suppresses it.
  for (int64_t i = 0; i < b; ++i) {
    if (std::isnan(scores[i])) continue;
    bool suppressed = false;
    for (int64_t k = 0; k < kept && !suppressed; ++k) {
      const int64_t other = keep[k];
      if (call.class_ids != nullptr && classes[other] != classes[i]) continue;
      if (!ranks_before(scores[other], other, scores[i], i)) break;
      suppressed = semantics::suppresses(semantics::box_at(boxes.data(), other),
                                         semantics::box_at(boxes.data(), i), call.iou_threshold,
                                         call.inclusive ? T(1) : T(0));
    }
    CHECK(suppressed != (seen.count(i) == 1));
  }
  needs_memory([&] { cpu::nms(call); }, call.boxes, call.scores, call.keep);
  call.keep = Nms<T>().keep;  // as if it had been forgotten
  CHECK(!accepted([&] { cpu::nms(call); }));
  call.keep = {nullptr, {0}};
  CHECK(accepted([&] { kept = cpu::nms(call); }) && kept == 0);
  call.keep = {keep.data(), {b}};
  call.scores.shape[0] = b + 1;
  CHECK(!accepted([&] { cpu::nms(call); }));
  call.scores.shape[0] = b;
  call.iou_threshold = dice.one_in(2) ? -0.1f : std::nanf("");
  CHECK(!accepted([&] { cpu::nms(call); }));

  const int64_t a = dice.between(0, 5);
  Buffer<T> others(a * 4), iou(a * b);
  dice.fill(others);
  BoxIou<T> overlap;
  overlap.boxes1 = {others.data(), {a, 4}};
  overlap.boxes2 = call.boxes;
  overlap.inclusive = call.inclusive;
  overlap.iou = {iou.data(), {a, b}};
  CHECK(accepted([&] { cpu::box_iou(overlap); }));
  needs_memory([&] { cpu::box_iou(overlap); }, overlap.boxes1, overlap.boxes2, overlap.iou);
  ++overlap.iou.shape[dice.below(2)];
  CHECK(!accepted([&] { cpu::box_iou(overlap); }));
}

template <typename T>
void box_codec(Dice& dice) {
  const int64_t r = dice.between(0, 9), classes = dice.between(0, 5);
  Buffer<T> proposals(r * 4), targets(r * 4), encoded(r * 4);
  fill_boxes(dice, proposals);
  fill_boxes(dice, targets);
  EncodeBoxes<T> encode;
  encode.proposals = {proposals.data(), {r, 4}};
  encode.targets = {targets.data(), {r, 4}};
  encode.deltas = {encoded.data(), {r, 4}};
  if (accepted([&] { cpu::encode_boxes(encode); }))
    for (int64_t i = 0; i < r * 4; ++i) {
      CHECK(std::isfinite(proposals[i]) && std::isfinite(targets[i]));
      if (i % 4 >= 2) CHECK(proposals[i] > proposals[i - 2] && targets[i] > targets[i - 2]);
    }

  Buffer<T> deltas(r * 4 * classes), decoded(deltas.size());
  dice.fill(deltas);
  DecodeBoxes<T> decode;
  decode.proposals = encode.proposals;
  decode.deltas = {deltas.data(), {r, 4 * classes}};
  decode.max_log_ratio = 4.135;
  decode.boxes = {decoded.data(), {r, 4 * classes}};
  CHECK(accepted([&] { cpu::decode_boxes(decode); }));

  Buffer<T> clipped(r * 4);
  ClipBoxes<T> clip;
  clip.boxes = encode.proposals;
  clip.height = 7.5, clip.width = 9, clip.inclusive = dice.one_in(2);
  clip.clipped = {clipped.data(), {r, 4}};
  CHECK(accepted([&] { cpu::clip_boxes(clip); }));
  for (int64_t i = 0; i < r * 4; ++i)
    CHECK(std::isnan(clipped[i]) ? std::isnan(proposals[i]) : clipped[i] >= 0 && clipped[i] <= 9);

  needs_memory([&] { cpu::encode_boxes(encode); }, encode.proposals, encode.targets, encode.deltas);
  needs_memory([&] { cpu::decode_boxes(decode); }, decode.proposals, decode.deltas, decode.boxes);
  needs_memory([&] { cpu::clip_boxes(clip); }, clip.boxes, clip.clipped);

  if (r > 0) {
    decode.boxes.shape[0] = r - 1;
    CHECK(!accepted([&] { cpu::decode_boxes(decode); }));
    encode.targets.shape[0] = r - 1;
    CHECK(!accepted([&] { cpu::encode_boxes(encode); }));
    encode.targets.shape[0] = r;
    encode.deltas.shape[dice.below(2)] -= 1;
    CHECK(!accepted([&] { cpu::encode_boxes(encode); }));
    clip.clipped.shape[dice.below(2)] -= 1;
    CHECK(!accepted([&] { cpu::clip_boxes(clip); }));
  }
}

template <typename T>
void smooth_l1(Dice& dice) {
  const int64_t r = dice.between(0, 300), d = dice.between(1, 5), classes = dice.between(1, 4);
  const bool by_class = dice.one_in(2);
  Buffer<T> deltas(r * d * (by_class ? classes : 1)), targets(r * d), weights(r * d);
  dice.fill(deltas);
  dice.fill(targets);
  dice.fill(weights);
  Buffer<int64_t> labels(r);
  bool valid = true;
  const bool wild = dice.one_in(4);
  for (int64_t i = 0; i < r; ++i) {
    labels[i] = wild && dice.one_in(40) ? dice.between(-INT64_C(1) << 60, INT64_C(1) << 60)
                                        : dice.below(classes);
    valid = valid && labels[i] >= 0 && labels[i] < classes;
  }
  SmoothL1<T> call;
  call.deltas = {deltas.data(), {r, d * (by_class ? classes : 1)}};
  call.targets = {targets.data(), {r, d}};
  call.labels = by_class && r > 0 ? labels.data() : nullptr;
  call.weights = dice.one_in(2) ? weights.data() : nullptr;
  call.beta = dice.one_in(3) ? 0.0 : 1.0;
  call.normalizer = 3.0;
  if (by_class && r == 0) call.deltas.shape[1] = d;  // no label array to point at
  const bool fits = call.labels == nullptr || valid;

  Buffer<T> loss(1), upstream(1), gradient(deltas.size());
  upstream[0] = dice.number<T>();
  CHECK(accepted([&] { cpu::smooth_l1_forward(call, loss.data()); }) == fits);
  View<T, 2> out{gradient.data(), {call.deltas.shape[0], call.deltas.shape[1]}};
  CHECK(accepted([&] { cpu::smooth_l1_backward(call, upstream.data(), out); }) == fits);
  needs_memory([&] { cpu::smooth_l1_forward(call, loss.data()); }, call.deltas, call.targets);
  needs_memory([&] { cpu::smooth_l1_backward(call, upstream.data(), out); }, call.deltas,
               call.targets, out);
  CHECK(!accepted([&] { cpu::smooth_l1_forward<T>(call, nullptr); }));
  CHECK(!accepted([&] { cpu::smooth_l1_backward<T>(call, nullptr, out); }));
}

template <typename T>
void detections(Dice& dice) {
  const int64_t r = dice.between(0, 30), columns = dice.between(1, 5), most = dice.between(0, 8);
  const int64_t width = dice.one_in(2) ? 4 : 4 * columns;  // of all classes, of each
  Buffer<T> proposals(r * 4), scores(r * columns), deltas(r * width);
  fill_boxes(dice, proposals);
  dice.fill(scores);
  dice.fill(deltas);
  Buffer<T> boxes(most * 4), box_scores(most);
  Buffer<int64_t> labels(most), rows(most);
  DetectBoxes<T> call;
  call.proposals = {proposals.data(), {r, 4}};
  call.scores = {scores.data(), {r, columns}};
  if (dice.one_in(2)) call.deltas = {deltas.data(), {r, width}};
  call.image_height = 20, call.image_width = 18;
  call.max_log_ratio = 4.135;
  call.score_threshold = dice.one_in(3) ? -std::numeric_limits<double>::infinity() : 0.05;
  call.nms_threshold = 0.3f;
  call.inclusive = dice.one_in(2);
  call.boxes = {boxes.data(), {most, 4}};
  call.box_scores = {box_scores.data(), {most}};
  call.labels = {labels.data(), {most}};
  call.proposal_rows = {rows.data(), {most}};
  int64_t found = -1;
  CHECK(accepted([&] { found = cpu::detect_boxes(call); }));
  CHECK(found >= 0 && found <= most);
  for (int64_t m = 0; m < found; ++m) {
    CHECK(labels[m] >= 1 && labels[m] < columns && rows[m] >= 0 && rows[m] < r);
    CHECK(box_scores[m] == scores[rows[m] * columns + labels[m]]);
    CHECK(box_scores[m] > static_cast<T>(call.score_threshold));
    if (m > 0) CHECK(box_scores[m - 1] >= box_scores[m]);
    for (int64_t k = 0; k < 4; ++k) CHECK(boxes[4 * m + k] >= 0 && boxes[4 * m + k] <= 20);
  }
  needs_memory([&] { cpu::detect_boxes(call); }, call.proposals, call.scores, call.boxes,
               call.box_scores, call.labels, call.proposal_rows);
  auto forgotten = call;
  forgotten.boxes = DetectBoxes<T>().boxes;
  CHECK(!accepted([&] { cpu::detect_boxes(forgotten); }));
  int64_t* const capacities[] = {&call.boxes.shape[0], &call.box_scores.shape[0],
                                 &call.labels.shape[0], &call.proposal_rows.shape[0]};
  ++*capacities[dice.below(4)];  // of one result alone
  CHECK(!accepted([&] { cpu::detect_boxes(call); }));
}

// The language of a program that uses the engine is no matter of its messages.
void messages_in_another_language() {
  struct Other : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Other));
  std::string message;
  try {
    fail("got ", 1234567, ", ", 1234.5f, " and ", 0.1);
  } catch (const InvalidArgument& error) {
    message = error.what();
  }
  std::locale::global(before);
  CHECK(message == "got 1234567, 1234.5 and 0.1");
}

void call_every_operator(uint64_t seed, int64_t rounds) {
  Dice dice(seed);
  for (int64_t i = 0; i < rounds; ++i) {
    roi_pool<float, int32_t>(dice), roi_pool<float, uint16_t>(dice);
    roi_pool<double, int32_t>(dice), roi_pool<double, uint16_t>(dice);
    roi_pool<float16, int32_t>(dice), roi_pool<float16, uint16_t>(dice);
    roi_pool<bfloat16, int32_t>(dice), roi_pool<bfloat16, uint16_t>(dice);
    nms<float>(dice), nms<double>(dice);
    box_codec<float>(dice), box_codec<double>(dice);
    smooth_l1<float>(dice), smooth_l1<double>(dice);
    detections<float>(dice), detections<double>(dice);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: %s SEED ROUNDS [CALLERS]\n", argv[0]);
    return 2;
  }
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10);
  const int64_t rounds = std::strtoll(argv[2], nullptr, 10);
  const uint64_t callers = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  messages_in_another_language();
  std::vector<std::thread> others;
  for (uint64_t i = 1; i < callers; ++i) others.emplace_back(call_every_operator, seed + i, rounds);
  call_every_operator(seed, rounds);
  for (std::thread& other : others) other.join();
  std::printf("%lld rounds of every operator, seed %llu\n", static_cast<long long>(rounds),
              static_cast<unsigned long long>(seed));
  return 0;
}
