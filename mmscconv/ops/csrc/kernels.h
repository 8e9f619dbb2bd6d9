/* The functions that Python and ONNX Runtime's op call, declared once: every source includes this file, so that the
 * compiler compares declaration and definition, and mmscconv/ops/prototypes.py reads the arguments' types and names here.
 * Functions are described at their definitions. All return 0, or 1 without memory for a workspace.
 *
 * A parameter is `[const] TYPE name` or `[const] TYPE *[NULLABLE] name` with float, double, int64_t, int or, for pointers
 * alone, Map. All Maps of a call are float if its parameter `bf16` is 0, and bfloat16 if it is 1 or, for sru_squeeze,
 * transform_fuse and scconv, 2: products in tiles. */
#ifndef MMSCCONV_KERNELS_H
#define MMSCCONV_KERNELS_H

#include <stdint.h>

#define NULLABLE /* the pointer may be NULL, None in Python */

typedef void Map; /* see maps.h */

/* sru.c */
int sru_forward(const float *x, const float *scale, const float *shift, int64_t samples, int64_t channels,
                int64_t positions, int channels_last, int64_t groups, double eps, float threshold, int hard, int threads,
                float *out, float *mean, float *rstd);
int sru_backward(const float *grad, const float *x, const float *scale, const float *shift, const float *mean,
                 const float *rstd, int64_t samples, int64_t channels, int64_t positions, int channels_last,
                 int64_t groups, float threshold, int hard, int threads, float *grad_x, double *grad_scale,
                 double *grad_shift);

/* fuse.c */
int fuse_forward(const float *y1, const float *NULLABLE y1_addend, const float *NULLABLE pwc2_out, const float *x_low,
                 const float *NULLABLE scale, const float *NULLABLE shift, int64_t samples, int64_t channels,
                 int64_t positions, int channels_last, int64_t low_channels, int64_t low_sample, int64_t low_row,
                 int threads, float *out, float *beta1);
int fuse_backward(const float *grad, const float *reference, int is_output, const float *NULLABLE pwc2_out,
                  const float *x_low, const float *beta1, int64_t samples, int64_t channels, int64_t positions,
                  int channels_last, int64_t low_channels, int64_t low_sample, int64_t low_row, int threads, float *pull,
                  float *grad1, float *grad_pwc2_out, float *grad_x_low);

/* batch_norm.c */
int batch_norm_forward(const Map *x, const float *weight, const float *bias, int64_t rows, int64_t channels, double eps,
                       int bf16, int threads, Map *out, double *mean, double *variance);
int batch_norm_backward(const Map *grad, const Map *x, const float *weight, const double *mean, const double *variance,
                        int64_t rows, int64_t channels, double eps, int bf16, int threads, Map *grad_x,
                        double *grad_weight, double *grad_bias);

/* norm_fuse.c */
int norm_fuse_forward(const Map *y1, const Map *pwc2_out, const Map *x_low, const float *weight1, const float *bias1,
                      double eps1, const float *weight2, const float *bias2, double eps2, int64_t samples,
                      int64_t channels, int64_t positions, int64_t low_channels, int bf16, int threads, Map *out,
                      double *mean, double *variance, double *sample_means);
int norm_fuse_backward(const Map *grad, const Map *y1, const Map *pwc2_out, const Map *x_low, const float *weight1,
                       const float *bias1, double eps1, const float *weight2, const float *bias2, double eps2,
                       const double *mean, const double *variance, const double *sample_means, int64_t samples,
                       int64_t channels, int64_t positions, int64_t low_channels, int bf16, int threads, Map *grad_y1,
                       Map *grad_pwc2_out, Map *grad_x_low, double *grad_weights, double *grad_biases);

/* squeeze.c */
int sru_squeeze(const Map *x, const float *scale, const float *shift, const float *up, const float *low,
                const float *NULLABLE bias_up, const float *NULLABLE bias_low, int64_t samples, int64_t channels,
                int64_t height, int64_t width, int64_t groups, double eps, float threshold, int hard, int64_t cut,
                int64_t squeezed_up, int64_t squeezed_low, int64_t pool_height, int64_t pool_width, int bf16, int threads,
                Map *out_up, Map *out_low, float *mean, float *rstd);
int sru_squeeze_backward(const Map *grad_up, const Map *grad_low, const Map *x, const float *scale, const float *shift,
                         const float *mean, const float *rstd, const float *up, const float *low, int64_t samples,
                         int64_t channels, int64_t positions, int64_t groups, float threshold, int hard, int64_t cut,
                         int64_t squeezed_up, int64_t squeezed_low, int bf16, int threads, Map *grad_x,
                         double *grad_scale, double *grad_shift, float *grad_weight_up, float *grad_weight_low);

/* transform.c */
int transform_fuse(const Map *x, const Map *NULLABLE up, const Map *low, const float *packed, const float *NULLABLE bias1,
                   const float *NULLABLE bias2, const float *NULLABLE scale, const float *NULLABLE shift,
                   const int64_t *geometry, int relu, int bf16, int threads, Map *out, float *beta1);

/* transform_backward.c */
int transform_fuse_backward(const Map *grad, const Map *x, const Map *NULLABLE up, const Map *low, const float *weights,
                            const float *beta1, const float *NULLABLE bias1, const float *NULLABLE bias2,
                            const int64_t *geometry, int bf16, int threads, Map *grad_x, Map *NULLABLE grad_up,
                            Map *grad_low, float *grad_weights, float *NULLABLE grad_bias1, float *NULLABLE grad_bias2);

/* scconv.c */
int scconv(const Map *x, const float *scale, const float *shift, const float *up, const float *low,
           const float *NULLABLE bias_up, const float *NULLABLE bias_low, const float *packed,
           const float *NULLABLE bias1, const float *NULLABLE bias2, const float *NULLABLE norm_scale,
           const float *NULLABLE norm_shift, int64_t channels, int64_t groups, double eps, float threshold, int hard,
           int64_t cut, const int64_t *geometry, int relu, int bf16, int threads, Map *out);

/* packing.c */
int pack(const float *weights, int64_t row_stride, int64_t k_stride, int64_t rows, int64_t depth, int64_t groups,
         float *out);
int pack_transform(const float *gwc, const float *pwc1, const float *pwc2, const int64_t *numbers, int threads,
                   float *out);
int transform_rows(const float *gwc, const float *pwc1, const float *pwc2, const int64_t *numbers, int64_t pitch,
                   int threads, float *out);
int weights_of_rows(const float *rows, int64_t pitch, const int64_t *numbers, int threads, float *gwc, float *pwc1,
                    float *pwc2);

/* tiles.c */
int tiles(int64_t *granted);

/* fingerprint.c */
int fingerprint(const Map *weights, int64_t count, const int64_t *numbers, int64_t amount, int bf16, int threads,
                int64_t *sum);

#endif
