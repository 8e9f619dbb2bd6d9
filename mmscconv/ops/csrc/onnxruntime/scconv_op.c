/* mmscconv::SCConv, version 1: the whole layer in its deploy form as an op of ONNX Runtime's CPU provider.
 *
 * Inputs, float: X (N, H, W, C); scale (C), shift (C); weights of the squeezes and their biases (u), (l); weights of
 * the transform, biases of Y1 (C2) and of PWC2; scale (C2) and shift (C2) of the norm behind. Biases and norm may be
 * left out. Weights lie as mmscconv/ops/packing.py packs them. Output: Y (N, H', W', C2).
 * Attributes: num_groups, eps, threshold, hard of the SRU; channels (the upper branch's part of C, u, l, C2, PWC2's
 * output channels); groups and window of the GWC; centre, the tap that includes PWC1, or -1; relu; panel. */
#include "../kernels.h"
#include "../transform.h"
#include "threads.h"

#include <stdio.h>

enum { X, SCALE, SHIFT, UP, LOW, BIAS_UP, BIAS_LOW, TRANSFORM, BIAS1, BIAS2, NORM_SCALE, NORM_SHIFT, INPUTS };
enum { CUT, U, L, C2, MADE, CHANNELS };

static const char *const NAMES[INPUTS] = {"X",        "scale",     "shift", "up",    "low",        "bias_up",
                                          "bias_low", "transform", "bias1", "bias2", "norm_scale", "norm_shift"};

typedef struct {
    const Api *api;
    int64_t num_groups, hard, relu, groups, centre, channels[CHANNELS], window[8];
    float eps, threshold;
} Kernel;

static int is_optional(size_t input) {
    return input == BIAS_UP || input == BIAS_LOW || input >= BIAS1;
}

/* A size behind a pool whose last window may be cut off. */
static int64_t strided(int64_t size, int64_t stride) { return (size + stride - 1) / stride; }

static int makes_sense(const Kernel *k) {
    int64_t least = min_of(min_of(k->num_groups, k->groups), min_of(k->channels[CUT], k->channels[MADE]));
    for (int i = 0; i < 8; i++) least = min_of(least, k->window[i] + (i / 2 == 2)); /* padding may be 0 */
    least = min_of(least, min_of(k->channels[U], min_of(k->channels[L], k->channels[C2])));
    if (least < 1 || k->channels[U] % k->groups || k->channels[C2] % k->groups) return 0;
    if (k->centre < -1 || k->centre >= k->window[0] * k->window[1]) return 0;
    return k->channels[MADE] == k->channels[C2] || k->channels[MADE] == k->channels[C2] - k->channels[L];
}

static Status *create(const Op *op, const Api *api, const Info *info, void **out) {
    (void)op;
    Kernel *k = calloc(1, sizeof *k);
    if (!k) return api->new_status(FAIL, "mmscconv::SCConv: no memory");
    k->api = api;
    int64_t panel = 0;
    size_t channels = CHANNELS, window = 8;
    Status *status = NULL;
    const char *const names[] = {"num_groups", "hard", "relu", "groups", "centre", "panel"};
    int64_t *const integers[] = {&k->num_groups, &k->hard, &k->relu, &k->groups, &k->centre, &panel};
    for (int i = 0; i < 6 && !status; i++) status = api->get_integer(info, names[i], integers[i]);
    if (!status) status = api->get_float(info, "eps", &k->eps);
    if (!status) status = api->get_float(info, "threshold", &k->threshold);
    if (!status) status = api->get_integers(info, "channels", k->channels, &channels);
    if (!status) status = api->get_integers(info, "window", k->window, &window);
    if (!status && (panel != PANEL || channels != CHANNELS || window != 8 || !makes_sense(k)))
        status = api->new_status(INVALID_ARGUMENT,
                                 "mmscconv::SCConv: this library does not know a node with such attributes: export "
                                 "the model again, with the library's own version");
    if (status) {
        free(k);
        k = NULL;
    }
    *out = k;
    return status;
}

static Geometry geometry_of(const Kernel *k, const int64_t *x) {
    const int64_t *c = k->channels, *w = k->window;
    return (Geometry){x[0], x[1], x[2], c[U], c[L], c[C2], c[MADE], k->groups,
                      {w[0], w[1]}, {w[2], w[3]}, {w[4], w[5]}, {w[6], w[7]},
                      {strided(x[1], w[2]), strided(x[2], w[3])}, k->centre};
}

/* The number of values that each input behind X must have. */
static void sizes_of(const Kernel *k, Geometry g, int64_t channels, int64_t *sizes) {
    Plan p = plan_of(g);
    const int64_t *c = k->channels;
    sizes[SCALE] = sizes[SHIFT] = channels;
    sizes[UP] = panels_of(c[U]) * PANEL * c[CUT];
    sizes[LOW] = panels_of(c[L]) * PANEL * (channels - c[CUT]);
    sizes[BIAS_UP] = c[U];
    sizes[BIAS_LOW] = c[L];
    sizes[TRANSFORM] = k->groups * p.panels_each * PANEL * p.depth;
    sizes[BIAS1] = sizes[NORM_SCALE] = sizes[NORM_SHIFT] = c[C2];
    sizes[BIAS2] = c[MADE];
}

/* An input's values (NULL if it is left out), their number, and its dimensions if there are four. */
static Status *read_input(const Api *api, const Context *context, size_t index, const float **data, size_t *elements,
                          int64_t *dimensions) {
    const Value *value = NULL;
    size_t count = 0, rank = 0;
    *data = NULL;
    *elements = 0;
    Status *status = api->input_count(context, &count);
    if (status || index >= count) return status;
    status = api->input(context, index, &value);
    if (status || !value) return status;
    TensorShape *shape = NULL;
    status = api->data_of((Value *)value, (void **)data);
    if (!status) status = api->shape_of(value, &shape);
    if (status) return status;
    status = api->elements_of(shape, elements);
    if (!status && dimensions) status = api->rank_of(shape, &rank);
    if (!status && rank == 4) status = api->dimensions_of(shape, dimensions, rank);
    api->free_shape(shape);
    return status;
}

static Status *compute(void *kernel, Context *context) {
    const Kernel *k = kernel;
    const Api *api = k->api;
    const float *data[INPUTS];
    int64_t x[4] = {0}, sizes[INPUTS];
    size_t elements;
    char message[160];
    Status *status = read_input(api, context, X, &data[X], &elements, x);
    if (status) return status;
    if (x[3] <= k->channels[CUT] || x[3] % k->num_groups) {
        snprintf(message, sizeof message,
                 "mmscconv::SCConv: X must be (N, H, W, C) with more than %lld channels in %lld groups, got C = %lld",
                 (long long)k->channels[CUT], (long long)k->num_groups, (long long)x[3]);
        return api->new_status(INVALID_ARGUMENT, message);
    }
    Geometry g = geometry_of(k, x);
    sizes_of(k, g, x[3], sizes);
    for (size_t i = SCALE; i < INPUTS; i++) {
        status = read_input(api, context, i, &data[i], &elements, NULL);
        if (status) return status;
        if ((data[i] || !is_optional(i)) && (int64_t)elements != sizes[i]) {
            snprintf(message, sizeof message, "mmscconv::SCConv: %s has %lld values, X of %lld channels needs %lld",
                     NAMES[i], (long long)elements, (long long)x[3], (long long)sizes[i]);
            return api->new_status(INVALID_ARGUMENT, message);
        }
    }
    int64_t dimensions[4] = {x[0], g.out[0], g.out[1], g.channels};
    Value *output;
    float *y;
    status = api->output(context, 0, dimensions, 4, &output);
    if (!status) status = api->data_of(output, (void **)&y);
    if (status || !x[0] || !x[1] || !x[2]) return status;
    borrow_threads(api, context);
    int failed = scconv(data[X], data[SCALE], data[SHIFT], data[UP], data[LOW], data[BIAS_UP], data[BIAS_LOW],
                        data[TRANSFORM], data[BIAS1], data[BIAS2], data[NORM_SCALE], data[NORM_SHIFT], x[3],
                        k->num_groups, k->eps, k->threshold, (int)k->hard, k->channels[CUT], (const int64_t *)&g,
                        (int)k->relu, 0, processors(), y);
    status = give_threads_back();
    if (!status && failed) status = api->new_status(FAIL, "mmscconv::SCConv: no memory for its workspace");
    return status;
}

static Status *read_integers(const Api *api, const Inference *inference, const char *name, int64_t *to, size_t count) {
    const Attribute *attribute;
    size_t written;
    Status *status = api->attribute(inference, name, &attribute);
    return status ? status : api->read_attribute(attribute, INTEGERS, to, count * sizeof *to, &written);
}

static const Api *inferring; /* shapes are inferred without a kernel, which could hold the API */

/* Without inferred shapes ONNX Runtime would not see that a block's two branches have the same shape, and would not add
 * them inside of a convolution. */
static Status *infer_shape(const Op *op, Inference *inference) {
    (void)op;
    const Api *api = inferring;
    TensorShape *shape = NULL;
    int64_t channels[CHANNELS], window[8], dimensions[4];
    const char *names[4];
    char strided_names[2][128];
    size_t rank = 0;
    Status *status = api->input_shape(inference, 0, &shape);
    if (!status) status = api->rank_of(shape, &rank);
    if (status || rank != 4) return status;
    status = api->dimensions_of(shape, dimensions, 4);
    if (!status) status = api->names_of(shape, names, 4);
    if (!status) status = read_integers(api, inference, "channels", channels, CHANNELS);
    if (!status) status = read_integers(api, inference, "window", window, 8);
    if (status) return status;
    for (int i = 0; i < 2; i++) {
        int64_t stride = window[2 + i], *size = &dimensions[1 + i];
        const char **name = &names[1 + i];
        if (stride == 1 || (*size < 0 && !**name)) continue;
        if (*size >= 0) {
            *size = strided(*size, stride);
            continue;
        }
        int length = snprintf(strided_names[i], sizeof strided_names[i], "ceil(%s/%lld)", *name, (long long)stride);
        *name = length < (int)sizeof strided_names[i] ? strided_names[i] : "";
    }
    dimensions[3] = channels[C2];
    for (int i = 0; i < 3; i++)
        if (dimensions[i] < 0 && !*names[i]) return NULL; /* a shape cannot say "unknown" */
    status = api->new_shape(&shape);
    if (status) return status;
    names[3] = "";
    status = api->set_element_type(shape, FLOAT_TENSOR);
    if (!status) status = api->set_dimensions(shape, dimensions, 4);
    if (!status) status = api->set_names(shape, names, 4);
    if (!status) status = api->set_output_shape(inference, 0, shape);
    api->free_shape(shape);
    return status;
}

static const char *name(const Op *op) { return (void)op, "SCConv"; }
static const char *provider(const Op *op) { return (void)op, NULL; }
static int tensor_type(const Op *op, size_t index) { return (void)op, (void)index, FLOAT_TENSOR; }
static size_t inputs(const Op *op) { return (void)op, INPUTS; }
static size_t outputs(const Op *op) { return (void)op, 1; }
static int input_kind(const Op *op, size_t index) { return (void)op, is_optional(index) ? OPTIONAL : REQUIRED; }
static int output_kind(const Op *op, size_t index) { return (void)op, (void)index, REQUIRED; }
static int input_memory(const Op *op, size_t index) { return (void)op, (void)index, DEFAULT_MEMORY; }
static int version(const Op *op) { return (void)op, 1; }

static const Op SCCONV = {
    .version = API_VERSION,
    .name = name,
    .provider = provider,
    .input_type = tensor_type,
    .inputs = inputs,
    .output_type = tensor_type,
    .outputs = outputs,
    .destroy = free,
    .input_kind = input_kind,
    .output_kind = output_kind,
    .input_memory = input_memory,
    .create = create,
    .compute = compute,
    .infer_shape = infer_shape,
    .since_version = version,
    .until_version = version,
};

/* The name and form that ONNX Runtime looks for in a library of ops. */
Status *RegisterCustomOps(Options *options, const ApiBase *base) {
    const Api *api = base->api(API_VERSION);
    if (!api) return base->api(1)->new_status(FAIL, "mmscconv::SCConv needs ONNX Runtime 1.17 or newer");
    inferring = api;
    Domain *domain = NULL; /* never freed: nothing tells when the last session that has it is gone */
    Status *status = api->new_domain("mmscconv", &domain);
    if (!status) status = api->add_op(domain, &SCCONV);
    if (!status) status = api->add_domain(options, domain);
    return status;
}
