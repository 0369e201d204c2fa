// Detections of one image, with ties, NaN and every capacity.
#include "fastrcnn_engine/detections.h"
#include "kernel_tests.h"

namespace {

enum class Deltas { none, of_each_class, of_all_classes };

template <typename T>
void detections_of(int64_t rows, int64_t columns, int64_t capacity, int64_t extent, Deltas kind,
                   Random& random) {
  const bool inclusive = random.integer(0, 1);
  const auto proposals = crowded_boxes<T>(rows, random, extent);
  const auto scores = tied_scores<T>(rows * columns, random);
  const int64_t width = kind == Deltas::of_all_classes ? 4 : 4 * columns;
  auto deltas = random.many<T>(width * rows, -1, 1);
  for (T& delta : deltas)
    if (random.integer(0, 29) == 0) delta = random.integer(0, 1) ? kNan : -kInf;
  DetectBoxes<T> call;
  call.proposals = rows_of(proposals, 4);
  call.scores = rows_of(scores, columns);
  call.deltas = rows_of(std::as_const(deltas), width);
  if (kind == Deltas::none) call.deltas.data = nullptr;
  call.image_height = 7 + extent;
  call.image_width = 8.5 + extent;
  call.max_log_ratio = std::log(1000.0 / 16);
  call.score_threshold = random.integer(0, 1) ? 0.5 : -1;
  call.nms_threshold = 0.3f;
  call.inclusive = inclusive;

  struct Results {
    std::vector<T> boxes, scores;
    std::vector<int64_t> labels, rows;
  };
  const Results blank{std::vector<T>(4 * capacity, 77), std::vector<T>(capacity, 77),
                      std::vector<int64_t>(capacity, 77), std::vector<int64_t>(capacity, 77)};
  Results results = blank, expected = blank;
  const auto into = [&call](Results& to) {
    call.boxes = rows_of(to.boxes, 4);
    call.box_scores = list_of(to.scores);
    call.labels = list_of(to.labels);
    call.proposal_rows = list_of(to.rows);
    return call;
  };
  const int64_t expected_count = cpu::detect_boxes(into(expected));
  in_every_schedule([&](const std::string& where) {
    results = blank;
    int64_t count = 77;
    cuda::detect_boxes(into(results), &count, stream());
    expect(count == 77, "detect_boxes does not wait" + where);
    emulation::finish();
    expect(count == expected_count, "detections count" + where);
    expect(same(results.boxes, expected.boxes), "detections boxes" + where);
    expect(same(results.scores, expected.scores), "detections scores" + where);
    expect(same(results.labels, expected.labels), "detections labels" + where);
    expect(same(results.rows, expected.rows), "detections rows" + where);
  });
}

template <typename T>
void detections_of() {
  Random random;
  for (const int64_t rows : {0, 1, 70})
    for (const int64_t columns : {1, 2, 6})
      for (const int64_t capacity : {0, 1, 10, 400})
        detections_of<T>(rows, columns, capacity, 1, Deltas(random.integer(0, 2)), random);
  detections_of<T>(1000, 2, 500, 100, Deltas::none, random);
  detections_of<T>(200, 4, 100, 40, Deltas::of_each_class, random);
  detections_of<T>(200, 4, 100, 40, Deltas::of_all_classes, random);
  detections_of<T>(20, 35, 300, 10, Deltas::of_each_class, random);
  detections_of<T>(600, 1, 10, 1, Deltas::of_each_class, random);
  // Long lists, of two windows where every score is high enough.
  for (const int64_t capacity : {10, 3000})
    detections_of<T>(900, 4, capacity, 100, Deltas::of_each_class, random);
}

void detections_waited_for() {
  Random random;
  const auto proposals = crowded_boxes<float>(20, random);
  const std::vector<float> scores(40, 0.5f);
  std::vector<float> boxes(40), kept_scores(10);
  std::vector<int64_t> labels(10), rows(10);
  DetectBoxes<float> call;
  call.proposals = rows_of(proposals, 4);
  call.scores = rows_of(scores, 2);
  call.image_height = call.image_width = 9;
  call.nms_threshold = 0.3f;
  call.boxes = rows_of(boxes, 4);
  call.box_scores = list_of(kept_scores);
  call.labels = list_of(labels);
  call.proposal_rows = list_of(rows);
  const int64_t expected = cpu::detect_boxes(call);
  expect(expected > 0 && cuda::detect_boxes(call, stream()) == expected, "detections that are waited for");
  emulation::finish();
}

}  // namespace

void detections() {
  detections_waited_for();
  detections_of<float>();
  detections_of<double>();
}
