/* The kernels that scconv.c and ONNX Runtime's op call, for the compiler to compare with their definitions. */
#ifndef MMSCCONV_INFERENCE_H
#define MMSCCONV_INFERENCE_H

#include <stdint.h>

int sru_squeeze(const float *x, const float *scale, const float *shift, const float *up, const float *low,
                const float *bias_up, const float *bias_low, int64_t samples, int64_t channels, int64_t height,
                int64_t width, int64_t groups, double eps, float threshold, int hard, int64_t cut, int64_t squeezed_up,
                int64_t squeezed_low, int64_t pool_height, int64_t pool_width, int threads, float *out_up,
                float *out_low, float *mean, float *rstd);
int transform_fuse(const float *x, const float *up, const float *low, const float *packed, const float *bias1,
                   const float *bias2, const float *scale, const float *shift, const int64_t *geometry, int relu,
                   int threads, float *out, float *beta1);
int scconv(const float *x, const float *scale, const float *shift, const float *up, const float *low,
           const float *bias_up, const float *bias_low, const float *packed, const float *bias1, const float *bias2,
           const float *norm_scale, const float *norm_shift, int64_t channels, int64_t groups, double eps,
           float threshold, int hard, int64_t cut, const int64_t *geometry, int relu, int threads, float *out);

#endif
