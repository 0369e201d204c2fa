/* The operators for languages that call C: host memory, float32, inference. Link fastrcnn_engine_c.
 *
 * A call is a struct, filled in by name, with what is not named left at 0. Memory, results too, is the
 * caller's, dense and row-major. What the operators do, and with bad values, is said by roi_pool.h,
 * box_codec.h, nms.h and detections.h. */
#ifndef FASTRCNN_ENGINE_C_API_H
#define FASTRCNN_ENGINE_C_API_H

#include <stdint.h>

#if defined(__GNUC__)
#define FRCNN_API __attribute__((visibility("default")))
#else
#define FRCNN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What every call gives back. */
enum { FRCNN_OK = 0, FRCNN_INVALID_ARGUMENT = 1, FRCNN_FAILED = 2 };

/* Why the last call of this thread did not give FRCNN_OK: the argument, the row, what was expected and what
 * was got. Some arguments have their names of Python there: input for features, boxes for rois and proposals,
 * output for a result. Valid until the thread's next call. */
FRCNN_API const char* frcnn_last_error(void);
FRCNN_API const char* frcnn_version(void);

/* How many threads one call of frcnn_roi_pool may use, at first as many as the process may run on. Results do
 * not depend on it; other calls use one. The number that is set, 1 or more, counts for the whole process, from the
 * next call on. frcnn_set_num_threads returns FRCNN_OK or what went wrong, as every call does. */
FRCNN_API int frcnn_get_num_threads(void);
FRCNN_API int frcnn_set_num_threads(int threads);

typedef struct {
  const float* features;     /* (N, C, H, W), or (N, H, W, C) where channels_last */
  int64_t n, c, h, w;
  int32_t channels_last;
  const float* rois;         /* (R, 5): image index, x1, y1, x2, y2 in image pixels, inclusive */
  int64_t r;
  float spatial_scale;       /* cells per image pixel */
  int64_t pooled_h, pooled_w;
  float* output;             /* (R, C, PH, PW), the layout of features */
  int32_t* argmax;           /* the same, h * W + w of the maximum or -1; null: not wanted */
} frcnn_roi_pool_args;
FRCNN_API int frcnn_roi_pool(const frcnn_roi_pool_args* args);

typedef struct {
  const float* proposals;    /* (R, 4): x1, y1, x2, y2 */
  const float* deltas;       /* (R, 4 * G): dx, dy, dw, dh for each of G classes */
  int64_t r, g;
  double max_log_ratio;      /* dw and dh are held at this; 0: log(1000 / 16) */
  float* boxes;              /* (R, 4 * G) */
} frcnn_decode_boxes_args;
FRCNN_API int frcnn_decode_boxes(const frcnn_decode_boxes_args* args);

typedef struct {
  const float* boxes;        /* (B, 4) */
  const float* scores;       /* (B,) */
  const int64_t* class_ids;  /* (B,) any numbers; null: one class */
  int64_t b;
  float iou_threshold;
  int32_t inclusive;         /* corners name pixels (VOC): widths x2 - x1 + 1 */
  int64_t* keep;             /* (M,): the first M kept indices by falling score, then -1; never null */
  int64_t m;
} frcnn_nms_args;
/* Writes how many were kept, at most M, to count. */
FRCNN_API int frcnn_nms(const frcnn_nms_args* args, int64_t* count);

typedef struct {
  const float* proposals;    /* (R, 4) in image pixels */
  const float* scores;       /* (R, K + 1) class probabilities, background in column 0 */
  const float* deltas;       /* (R, 4 * (K + 1)) un-normalised; null: the proposals as they are */
  int32_t class_agnostic;    /* the deltas are (R, 4), for all classes */
  int64_t r, k;
  double image_height, image_width;
  double max_log_ratio;      /* as above */
  double score_threshold;
  float nms_threshold;
  int32_t inclusive;
  float* boxes;              /* (M, 4) by falling score; behind the last 0, in rows -1; never null */
  float* box_scores;         /* (M,) */
  int64_t* labels;           /* (M,) 1 .. K */
  int64_t* rows;             /* (M,) the proposal each came from */
  int64_t m;
} frcnn_detections_args;
/* Writes how many there are, at most M, to count. */
FRCNN_API int frcnn_detections(const frcnn_detections_args* args, int64_t* count);

#ifdef __cplusplus
}
#endif

#endif
