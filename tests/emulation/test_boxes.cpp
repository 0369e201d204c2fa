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

// `ids`: one for each box, or none. The CPU and every schedule of the device keep the same, in as many places
// as there are boxes, in fewer and in more.
template <typename T>
void nms_of(const std::vector<T>& boxes, const std::vector<T>& scores, const std::vector<int64_t>& ids,
            float threshold, Random& random) {
  const auto count = static_cast<int64_t>(scores.size());
  Nms<T> call;
  call.boxes = rows_of(boxes, 4);
  call.scores = {scores.data(), {count}};
  call.class_ids = ids.empty() ? nullptr : ids.data();
  call.iou_threshold = threshold;
  call.inclusive = random.integer(0, 1);
  const int64_t other_places[] = {0, 1, count + 5};
  for (const int64_t places : {count, count / 3, other_places[random.integer(0, 2)]}) {
    std::vector<int64_t> keep, expected(places, 77);
    call.keep = list_of(expected);
    const int64_t expected_count = cpu::nms(call);
    in_every_schedule([&](const std::string& where) {
      keep.assign(places, 77);
      call.keep = list_of(keep);
      int64_t kept = 77;
      cuda::nms(call, &kept, stream());
      const std::string which =
          " of " + std::to_string(count) + " boxes to " + std::to_string(places) + " places" + where;
      expect(kept == 77, "nms does not wait" + which);
      emulation::finish();
      expect(kept == expected_count, "nms count" + which);
      expect(same(keep, expected), "nms indices" + which);
    });
  }
}

template <typename T>
void nms_of(int64_t count, const std::vector<int64_t>& ids, int64_t extent, float threshold, Random& random) {
  nms_of<T>(crowded_boxes<T>(count, random, extent), tied_scores<T>(count, random), ids, threshold, random);
}

float any_threshold(Random& random) {
  constexpr float thresholds[] = {0, 0.3f, 0.5f, 1};
  return thresholds[random.integer(0, 3)];
}

// What a block has kept of one class must not suppress boxes of the next: of two blocks, the first has
// classes 7 and 9, and the last box is where one of class 7 was.
template <typename T>
void nms_of_one_class_after_the_other(Random& random) {
  std::vector<T> boxes, scores;
  std::vector<int64_t> ids;
  const auto add = [&](T x, int64_t id) {
    for (const T corner : {x, T(0), x + T(2), T(2)}) boxes.push_back(corner);
    scores.push_back(T(100) - static_cast<T>(ids.size()));
    ids.push_back(id);
  };
  for (int i = 0; i < 4; ++i) add(T(10 * i), 7);
  add(0, 8);
  for (int i = 0; i < 32; ++i) add(90, 9);
  add(10, 9);
  for (int i = 0; i < 3; ++i) nms_of<T>(boxes, scores, ids, any_threshold(random), random);
  // Nor may a class that has no box to keep say where those of the one before it go.
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] == 9) scores[i] = static_cast<T>(kNan);
  nms_of<T>(boxes, scores, ids, any_threshold(random), random);
}

// Ids of classes with so many boxes, in any order.
std::vector<int64_t> ids_of(const std::vector<int64_t>& sizes, Random& random) {
  std::vector<int64_t> ids;
  for (size_t i = 0; i < sizes.size(); ++i) ids.insert(ids.end(), sizes[i], 5 - 3 * static_cast<int64_t>(i));
  for (size_t i = 1; i < ids.size(); ++i) std::swap(ids[i], ids[random.integer(0, i)]);
  return ids;
}

// Ids of `classes` classes, the first of which has half of the boxes.
std::vector<int64_t> random_ids(int64_t count, int64_t classes, Random& random) {
  std::vector<int64_t> names{std::numeric_limits<int64_t>::min(), -1, 0,
                             std::numeric_limits<int64_t>::max()}, ids(count);
  while (static_cast<int64_t>(names.size()) < classes)
    names.push_back(random.integer(-1000, 1000) << random.integer(0, 50));
  for (int64_t& id : ids) id = names[random.integer(0, 1) * random.integer(0, classes - 1)];
  return ids;
}

template <typename T>
void nms_of() {
  Random random;
  const auto check = [&random](int64_t count, int64_t classes, int64_t extent) {
    const auto ids = classes > 0 ? random_ids(count, classes, random) : std::vector<int64_t>{};
    nms_of<T>(count, ids, extent, any_threshold(random), random);
  };
  for (const int64_t count : {0, 1, 31, 32, 33, 63, 64, 65}) check(count, 0, count % 2 ? 6 : 20);
  nms_of<T>(crowded_boxes<T>(512, random), random.many<T>(512, 0, 3), {}, 0.3f, random);
  for (const int64_t count : {0, 1, 33, 257}) check(count, 5, 20);
  for (const int64_t id : {0, 3}) nms_of<T>(1, {id}, 6, 0.5f, random);  // either slot of a table of two
  check(300, 12, 30);
  check(40, 40, 6);
  nms_of<T>(crowded_boxes<T>(40, random), std::vector<T>(40, kNan), {}, 0.5f, random);
  nms_of_one_class_after_the_other<T>(random);
}

// Lists of several windows, of 512 boxes or, with class ids, 1024. One in thirty has no score.
template <typename T>
void nms_of_long_lists_of() {
  Random random;
  for (const int64_t count : {560, 700}) nms_of<T>(count, {}, 30, 0.3f, random);
  // As many lists as there can be, and as much room as they can take: each ends with a group of one box.
  const auto ids = ids_of({513, 513, 513}, random);
  nms_of<T>(crowded_boxes<T>(1539, random, 60), random.many<T>(1539, 0, 3), ids, 0.3f, random);
  // No shared memory for all that is gathered.
  with_shared_bytes(sizeof(T) == 4 ? 13000 : 25000, [&] { nms_of<T>(1720, {}, 80, 0, random); });
  // Classes of one window, of several, and such as one block suppresses. Most boxes are kept, and nearly all.
  const auto mixed = ids_of({620, 1350, 3, 500}, random);
  nms_of<T>(2473, mixed, 60, 0.1f, random);
  nms_of<T>(2473, mixed, 200, 0.5f, random);
}

}  // namespace

void nms() {
  nms_of<float>();
  nms_of<double>();
}

void nms_of_long_lists() {
  nms_of_long_lists_of<float>();
  nms_of_long_lists_of<double>();
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
