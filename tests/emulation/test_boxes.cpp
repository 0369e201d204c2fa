// Box codec, overlaps and suppression.
#include "fastrcnn_engine/box_codec.h"
#include "fastrcnn_engine/nms.h"
#include "kernel_tests.h"

namespace {

template <typename T>
void box_codec_of() {
  Random random;
  for (const int64_t rows : {0, 1, 300})
    for (const bool inclusive : {false, true}) {
      constexpr int64_t classes = 3;
      const auto proposals = crowded_boxes<T>(rows, random);
      auto deltas = random.many<T>(4 * rows * classes, -5, 5);
      for (T& delta : deltas)
        if (random.integer(0, 19) == 0) delta = random.integer(0, 1) ? kNan : kInf;
      std::vector<T> decoded(deltas.size()), expected_decoded(deltas.size());
      std::vector<T> clipped(proposals.size()), expected_clipped(proposals.size());
      DecodeBoxes<T> decode{rows_of(proposals, 4), rows_of(std::as_const(deltas), 4 * classes),
                            std::log(1000.0 / 16), rows_of(expected_decoded, 4 * classes)};
      ClipBoxes<T> clip{rows_of(proposals, 4), 5.5, 4, inclusive, rows_of(expected_clipped, 4)};
      cpu::decode_boxes(decode);
      cpu::clip_boxes(clip);

      // Boxes with area: the others the CPU rejects.
      std::vector<T> from, to;
      for (int64_t i = 0; i < 4 * rows; ++i) {
        const T corner = random.quarters(0, 9);
        from.push_back(i % 4 < 2 ? corner : from[i - 2] + T(0.25) + corner);
        to.push_back(i % 4 < 2 ? corner / T(3) : to[i - 2] + T(0.1) + corner);
      }
      std::vector<T> encoded(from.size()), expected_encoded(from.size());
      EncodeBoxes<T> encode{rows_of(std::as_const(from), 4), rows_of(std::as_const(to), 4),
                            rows_of(expected_encoded, 4)};
      cpu::encode_boxes(encode);

      decode.boxes = rows_of(decoded, 4 * classes);
      clip.clipped = rows_of(clipped, 4);
      encode.deltas = rows_of(encoded, 4);
      in_every_schedule([&](const std::string& where) {
        cuda::decode_boxes(decode, stream());
        cuda::clip_boxes(clip, stream());
        cuda::encode_boxes(encode, stream());
        emulation::finish();
        expect(same(decoded, expected_decoded), "decode_boxes" + where);
        expect(same(clipped, expected_clipped), "clip_boxes" + where);
        expect(same(encoded, expected_encoded), "encode_boxes" + where);
      });
    }
}

}  // namespace

void box_codec() {
  box_codec_of<float>();
  box_codec_of<double>();
}

namespace {

template <typename T>
void box_iou_of() {
  Random random;
  for (const auto& [a, b] : {std::pair{0, 3}, {3, 0}, {1, 1}, {40, 27}})
    for (const bool inclusive : {false, true}) {
      const auto boxes1 = crowded_boxes<T>(a, random), boxes2 = crowded_boxes<T>(b, random);
      std::vector<T> iou(a * b), expected(a * b);
      BoxIou<T> call{rows_of(boxes1, 4), rows_of(boxes2, 4), inclusive, {expected.data(), {a, b}}};
      cpu::box_iou(call);
      call.iou.data = iou.data();
      in_every_schedule([&](const std::string& where) {
        iou.assign(iou.size(), T(77));
        cuda::box_iou(call, stream());
        emulation::finish();
        expect(same(iou, expected), "box_iou" + where);
      });
    }
}

}  // namespace

void box_iou() {
  box_iou_of<float>();
  box_iou_of<double>();
}

namespace {

template <typename T>
void nms_of() {
  Random random;
  constexpr int64_t class_values[] = {std::numeric_limits<int64_t>::min(), -1, 0, 1,
                                      std::numeric_limits<int64_t>::max()};
  for (const int64_t count : {0, 1, 2, 255, 257})
    for (const int classes : {0, 1, 5})  // 0: no class ids
      for (const float threshold : {0.0f, 0.3f, 0.5f, 1.0f})
        for (const bool inclusive : {false, true}) {
          const auto boxes = crowded_boxes<T>(count, random);
          auto scores = tied_scores<T>(count, random);
          if (threshold == 1.0f) scores.assign(count, kNan);
          std::vector<int64_t> ids(count), keep(count), expected(count, 77);
          for (int64_t& id : ids) id = class_values[random.integer(0, std::max(classes, 1) - 1)];
          Nms<T> call;
          call.boxes = rows_of(boxes, 4);
          call.scores = {scores.data(), {count}};
          call.class_ids = classes > 0 ? ids.data() : nullptr;
          call.iou_threshold = threshold;
          call.inclusive = inclusive;
          call.keep = list_of(expected);
          const int64_t expected_count = cpu::nms(call);
          call.keep = list_of(keep);
          in_every_schedule([&](const std::string& where) {
            keep.assign(count, 77);
            const int64_t kept = cuda::nms(call, stream());
            emulation::finish();
            expect(kept == expected_count, "nms count" + where);
            expect(same(keep, expected), "nms indices" + where);
          });
        }
}

}  // namespace

void nms() {
  nms_of<float>();
  nms_of<double>();
}

// An overlap of exactly the threshold does not suppress, a little more does.
void nms_at_threshold() {
  const std::vector<float> boxes{0, 0, 2, 2, 0, 0, 2, 1, 0, 0, 2, 1.25f}, scores{3, 2, 1};
  std::vector<int64_t> keep(3);
  Nms<float> call;
  call.boxes = rows_of(boxes, 4);
  call.scores = {scores.data(), {3}};
  call.iou_threshold = 0.5f;
  call.keep = list_of(keep);
  expect(cuda::nms(call, stream()) == 2 && keep[0] == 0 && keep[1] == 1, "IoU of 0.5 is kept");
  emulation::finish();
}
