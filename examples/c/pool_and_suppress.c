/* The engine from C: pool, suppress, and be refused. Any language that calls C does the same.
 *
 *     cc pool_and_suppress.c -I engine/include -L engine/lib -Wl,-rpath,$PWD/engine/lib -lfastrcnn_engine_c \
 *         -o pool_and_suppress */
#include <fastrcnn_engine/c_api.h>
#include <stdio.h>

int main(void) {
  /* One image, two channels, a map of 8 x 8 cells at a sixteenth of the image. */
  float features[1 * 2 * 8 * 8];
  for (int i = 0; i < 128; ++i) features[i] = (float)i;
  float rois[] = {0, 0, 0, 112, 112,  0, 32, 48, 79, 95};
  float pooled[2 * 2 * 2 * 2];

  frcnn_roi_pool_args pool = {
      .features = features, .n = 1, .c = 2, .h = 8, .w = 8, .rois = rois, .r = 2,
      .spatial_scale = 1.0f / 16, .pooled_h = 2, .pooled_w = 2, .output = pooled};
  if (frcnn_roi_pool(&pool) != FRCNN_OK) return 1;
  printf("pooled:");
  for (int i = 0; i < 16; ++i) printf(" %g", pooled[i]);

  const float boxes[] = {10, 10, 60, 60,  12, 11, 61, 59,  80, 80, 120, 110};
  const float scores[] = {0.8f, 0.9f, 0.7f};
  int64_t keep[3], kept = 0;
  frcnn_nms_args nms = {
      .boxes = boxes, .scores = scores, .b = 3, .iou_threshold = 0.3f, .keep = keep, .m = 3};
  if (frcnn_nms(&nms, &kept) != FRCNN_OK) return 1;
  printf("\nkept:");
  for (int64_t i = 0; i < kept; ++i) printf(" %d", (int)keep[i]);

  rois[5] = 3;
  if (frcnn_roi_pool(&pool) == FRCNN_INVALID_ARGUMENT) printf("\nrefused: %s", frcnn_last_error());
  rois[5] = 0;
  pool.output = NULL;
  if (frcnn_roi_pool(&pool) == FRCNN_INVALID_ARGUMENT) printf("\nrefused: %s\n", frcnn_last_error());
  return 0;
}
