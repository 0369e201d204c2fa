// The C face of the operators: structs to structs, exceptions to numbers.
#include "fastrcnn_engine/c_api.h"

#include <string>

#include "fastrcnn_engine/box_codec.h"
#include "fastrcnn_engine/detections.h"
#include "fastrcnn_engine/error.h"
#include "fastrcnn_engine/nms.h"
#include "fastrcnn_engine/roi_pool.h"
#include "fastrcnn_engine/threads.h"

namespace fr = fastrcnn_engine;

namespace {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

void tell(const std::exception& error) noexcept {
  try {
    last_error() = error.what();
  } catch (const std::exception&) {
    last_error() = "out of memory";  // short enough to need none
  }
}

template <typename Call>
int guarded(Call call) {
  try {
    last_error().clear();
    call();
    return FRCNN_OK;
  } catch (const fr::InvalidArgument& error) {
    tell(error);
    return FRCNN_INVALID_ARGUMENT;
  } catch (const std::exception& error) {
    tell(error);
    return FRCNN_FAILED;
  }
}

// What a zeroed struct lacks and the engine would not miss: to it 0 results are a choice.
void require_given(const void* data, const char* name) {
  if (data == nullptr) fr::fail(name, " must not be null");
}

template <typename Call>
int guarded(const void* args, Call call) {
  return guarded([&] {
    require_given(args, "args");
    call();
  });
}

// Of more boxes a row the number of columns, four each, might not be a number of 64 bits.
void require_count(int64_t count, const char* name) {
  constexpr int64_t most = int64_t{1} << 60;
  if (count < 0 || count > most) fr::fail(name, " must be in [0, ", most, "], got ", count);
}

double ratio_or_default(double ratio) { return ratio == 0 ? fr::kMaxLogRatio : ratio; }

}  // namespace

const char* frcnn_last_error(void) { return last_error().c_str(); }

const char* frcnn_version(void) {
  return FRCNN_VERSION;  // not build_info's, which throws where the environment names no instruction set
}

int frcnn_get_num_threads(void) { return fr::num_threads(); }

int frcnn_set_num_threads(int threads) {
  return guarded([&] { fr::set_num_threads(threads); });
}

int frcnn_roi_pool(const frcnn_roi_pool_args* a) {
  return guarded(a, [&] {
    const fr::Layout layout = a->channels_last ? fr::Layout::nhwc : fr::Layout::nchw;
    fr::RoiPoolForward<float> call;
    call.features = {a->features, a->n, a->c, a->h, a->w, layout};
    call.rois = {a->rois, {a->r, 5}};
    call.spatial_scale = a->spatial_scale;
    call.output = {a->output, a->r, a->c, a->pooled_h, a->pooled_w, layout};
    call.argmax = {a->argmax, a->r, a->c, a->pooled_h, a->pooled_w, layout};
    fr::cpu::roi_pool_forward(call);
  });
}

int frcnn_decode_boxes(const frcnn_decode_boxes_args* a) {
  return guarded(a, [&] {
    require_count(a->g, "g");
    fr::DecodeBoxes<float> call;
    call.proposals = {a->proposals, {a->r, 4}};
    call.deltas = {a->deltas, {a->r, 4 * a->g}};
    call.max_log_ratio = ratio_or_default(a->max_log_ratio);
    call.boxes = {a->boxes, {a->r, 4 * a->g}};
    fr::cpu::decode_boxes(call);
  });
}

int frcnn_nms(const frcnn_nms_args* a, int64_t* count) {
  return guarded(a, [&] {
    require_given(count, "count");
    require_given(a->keep, "keep");
    fr::Nms<float> call;
    call.boxes = {a->boxes, {a->b, 4}};
    call.scores = {a->scores, {a->b}};
    call.class_ids = a->class_ids;
    call.iou_threshold = a->iou_threshold;
    call.inclusive = a->inclusive != 0;
    call.keep = {a->keep, {a->m}};
    *count = fr::cpu::nms(call);
  });
}

int frcnn_detections(const frcnn_detections_args* a, int64_t* count) {
  return guarded(a, [&] {
    require_given(count, "count");
    require_given(a->boxes, "output boxes");
    require_count(a->k, "k");
    fr::DetectBoxes<float> call;
    call.proposals = {a->proposals, {a->r, 4}};
    call.scores = {a->scores, {a->r, a->k + 1}};
    call.deltas = {a->deltas, {a->r, a->class_agnostic != 0 ? 4 : 4 * (a->k + 1)}};
    call.image_height = a->image_height;
    call.image_width = a->image_width;
    call.max_log_ratio = ratio_or_default(a->max_log_ratio);
    call.score_threshold = a->score_threshold;
    call.nms_threshold = a->nms_threshold;
    call.inclusive = a->inclusive != 0;
    call.boxes = {a->boxes, {a->m, 4}};
    call.box_scores = {a->box_scores, {a->m}};
    call.labels = {a->labels, {a->m}};
    call.proposal_rows = {a->rows, {a->m}};
    *count = fr::cpu::detect_boxes(call);
  });
}
